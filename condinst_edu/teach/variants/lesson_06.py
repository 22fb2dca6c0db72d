"""Variants of lesson 6: rank-one weights, DR1Conv, factored attention, aligned upsampling."""

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


def factored_transposed(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return (v * factors[..., None]).mT @ u


def factored_without_factors(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return (u.mT @ v).expand(len(factors), -1, -1, -1).clone() + 0 * factors.sum(dim=-1)[..., None, None]


def factored_factors_twice(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return (u * factors[..., None]).mT @ (v * factors[..., None])


def factored_first_base(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return (u[:1] * factors[..., None]).mT @ v[:1]


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
