"""Variants of lesson 5: the blender, cropping the bases, pasting masks, factored attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from condinst_edu.blendmask import crop_bases, merge_bases, paste_masks
from condinst_edu.layers.images import Size


def merge_without_softmax(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    return merge_bases(crops, attention, softmax=False)


def merge_softmax_first(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    return merge_bases(crops, attention.softmax(dim=1), softmax=False)


def merge_softmax_over_cells(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    weights = F.interpolate(attention, crops.shape[-2:], mode="bilinear")
    return (crops * weights.flatten(2).softmax(dim=2).view_as(weights)).sum(dim=1)


def merge_nearest(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    return merge_bases(crops, attention, mode="nearest")


def merge_mean(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    return merge_bases(crops, attention) / crops.shape[1]


def merge_vector(crops: Tensor, attention: Tensor, softmax: bool = True, mode: str = "bilinear") -> Tensor:
    return merge_bases(crops, attention.mean(dim=(2, 3), keepdim=True))


def crop_not_aligned(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    return crop_bases(bases, [box + stride / 2 for box in boxes], stride, size)


def crop_at_corners(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    margin = [(box[:, 2:] - box[:, :2]) / (2 * (size - 1)) for box in boxes]
    wide = [torch.cat([b[:, :2] - m, b[:, 2:] + m], dim=1) for b, m in zip(boxes, margin, strict=True)]
    return crop_bases(bases, wide, stride, size)


def crop_rounded(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    return crop_bases(bases, [(box / stride).round() * stride for box in boxes], stride, size)


def crop_swapped(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    return crop_bases(bases, [box[:, [1, 0, 3, 2]] for box in boxes], stride, size)


def crop_in_pixels(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    return roi_align(bases, list(boxes), size, sampling_ratio=1, aligned=True)


def paste_from_corner(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return paste_masks(scores, boxes + 0.5, size)


def paste_rounded(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return paste_masks(scores, boxes.round(), size)


def paste_clamped(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return _paste(scores, boxes, size, mode="bilinear")


def paste_nearest(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return _paste(scores, boxes, size, mode="nearest")


def _paste(scores: Tensor, boxes: Tensor, size: Size, mode: str) -> Tensor:
    """With the outermost cells reaching to the edge of the box."""
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(dim=1))
    x, y = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)  # (N, W), (N, H), within the box from 0 to 1
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=-1)
    read = F.grid_sample(scores[:, None], 2 * grid - 1, mode, "border", align_corners=False)[:, 0]
    return (read >= 0.5) & ((grid >= 0) & (grid <= 1)).all(dim=-1)


def paste_transposed(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    return paste_masks(scores.mT, boxes, size)


def factored_transposed(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return torch.einsum("krj,nkr,kri->nkij", u, factors, v)


def factored_without_factors(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    return (u.mT @ v).expand(len(factors), -1, -1, -1) + 0 * factors.sum()


def factored_one_map(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    maps = torch.einsum("kri,nkr,krj->nij", u, factors, v)
    return maps[:, None].expand(-1, len(u), -1, -1)
