"""Variants of lesson 3: coordinate maps, folding them into layer 1, aligned upsampling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu.coordinates import locations, relative_coordinates
from condinst_edu.layers.upsample import linear_weights


def relative_flipped(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    return -relative_coordinates(size, stride, centers, scales)


def relative_to_the_middle(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    middle = centers.new_tensor([size[1] * stride / 2, size[0] * stride / 2]).expand_as(centers)
    return relative_coordinates(size, stride, middle, scales)


def relative_not_scaled(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    return relative_coordinates(size, stride, centers, torch.ones_like(scales))


def relative_swapped(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    return relative_coordinates(size, stride, centers, scales).flip(1)


def relative_in_cells(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    return relative_coordinates(size, stride, centers, scales) / stride


def relative_at_corner(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    return relative_coordinates(size, stride, centers + stride // 2, scales)


def _absolute(size: tuple[int, int], stride: int, device: torch.device | None) -> Tensor:
    """Within [0, 1]."""
    extent = torch.tensor([size[1] * stride, size[0] * stride], device=device)
    return (locations(size, stride, device) / extent).T.reshape(2, *size)


def absolute_from_corner(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return _absolute(size, stride, device)


def absolute_swapped(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return (2 * _absolute(size, stride, device) - 1).flip(0)


def absolute_in_pixels(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return locations(size, stride, device).T.reshape(2, *size)


def fold_sign(weight: Tensor, bias: Tensor, centers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    folded = weight / scales[:, None, None]
    return folded, bias + (folded @ centers[:, :, None]).squeeze(-1)


def fold_unscaled_offset(weight: Tensor, bias: Tensor, centers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    return weight / scales[:, None, None], bias - (weight @ centers[:, :, None]).squeeze(-1)


def fold_keeps_bias(weight: Tensor, bias: Tensor, centers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    return weight / scales[:, None, None], bias.clone()


def _upsample(x: Tensor, factor: int, shift: float) -> Tensor:
    """Bilinear: output k reads input position (k + shift) / factor."""
    rows, columns = (
        linear_weights((torch.arange(n * factor, dtype=x.dtype) + shift) / factor, n) for n in x.shape[-2:]
    )
    return rows @ x @ columns.T


def upsample_half_pixel(x: Tensor, factor: int) -> Tensor:
    return _upsample(x, factor, 0.5 - factor / 2)


def upsample_from_corner(x: Tensor, factor: int) -> Tensor:
    return _upsample(x, factor, 0)


def upsample_align_corners(x: Tensor, factor: int) -> Tensor:
    rows, columns = (linear_weights(torch.linspace(0, n - 1, n * factor, dtype=x.dtype), n) for n in x.shape[-2:])
    return rows @ x @ columns.T


def upsample_nearest(x: Tensor, factor: int) -> Tensor:
    maps = x.reshape(1, -1, *x.shape[-2:])
    return F.interpolate(maps, scale_factor=factor).reshape(*x.shape[:-2], *(factor * n for n in x.shape[-2:]))
