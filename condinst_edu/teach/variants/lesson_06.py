"""Variants of lesson 6: rank-one weights, DR1Conv, mean embeddings, aligned upsampling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu.layers.upsample import aligned_upsample


def rank_one_added(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return weight + torch.outer(b, a)


def rank_one_without_a(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return weight * b[:, None]


def rank_one_without_b(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return weight * a


def rank_one_matrix_product(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.outer(weight @ a, a) + 0 * b[:, None]


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def dr1conv_b_before(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    x = x if a is None else x * a
    return _conv(x if b is None else x * b, weight)


def dr1conv_as_printed(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Eq. 3: each position multiplies what it gives by its own B, one tap of the kernel after the other."""
    x = x if a is None else x * a
    if b is None:
        return _conv(x, weight)
    side, middle = weight.shape[-1], weight.shape[-1] // 2
    height, width = x.shape[-2:]
    total = torch.zeros_like(x)
    for i in range(side):
        for j in range(side):
            given = F.pad(torch.einsum("oc,bchw->bohw", weight[:, :, i, j], x) * b, [middle] * 4)
            total = total + given[..., i : i + height, j : j + width]
    return total


def dr1conv_swapped(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    y = _conv(x if b is None else x * b, weight)
    return y if a is None else y * a


def dr1conv_both_after(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    y = _conv(x, weight)
    return y if a is None or b is None else y * a * b


def dr1conv_without_a(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    y = _conv(x, weight)
    return y if b is None else y * b


def dr1conv_without_b(x: Tensor, weight: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    return _conv(x if a is None else x * a, weight)


def _counts(instance: Tensor, count: int) -> Tensor:
    return torch.bincount(instance, minlength=count)


def embeddings_summed(embeddings: Tensor, instance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    total = embeddings.new_zeros(count, embeddings.shape[1]).index_add(0, instance, embeddings)
    return total, _counts(instance, count)


def embeddings_over_all(embeddings: Tensor, instance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    total, number = embeddings_summed(embeddings, instance, count)
    return total / max(1, len(instance)), number


def embeddings_of_the_last(embeddings: Tensor, instance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    columns = [embeddings.new_zeros(embeddings.shape[1])] * count
    for embedding, i in zip(embeddings, instance.tolist(), strict=True):
        columns[i] = embedding
    return torch.stack(columns), _counts(instance, count)


def upsample_to_official(x: Tensor, size: tuple[int, int]) -> Tensor:
    return aligned_upsample(x, 2)[..., : size[0], : size[1]]


def upsample_to_half_pixel(x: Tensor, size: tuple[int, int]) -> Tensor:
    doubled = F.interpolate(x.flatten(0, -4) if x.dim() > 3 else x[None], scale_factor=2, mode="bilinear")
    return doubled.reshape(*x.shape[:-2], *doubled.shape[-2:])[..., : size[0], : size[1]]


def upsample_to_stretched(x: Tensor, size: tuple[int, int]) -> Tensor:
    stretched = F.interpolate(x.flatten(0, -4) if x.dim() > 3 else x[None], size, mode="bilinear")
    return stretched.reshape(*x.shape[:-2], *size)


def upsample_to_cut_at_the_start(x: Tensor, size: tuple[int, int]) -> Tensor:
    fine = aligned_upsample(x, 2)[..., 1:, 1:]
    fine = torch.cat([fine, fine[..., -1:]], dim=-1)
    fine = torch.cat([fine, fine[..., -1:, :]], dim=-2)
    return fine[..., fine.shape[-2] - size[0] :, fine.shape[-1] - size[1] :]
