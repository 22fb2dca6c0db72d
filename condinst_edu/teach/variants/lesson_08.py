"""Variants of lesson 8: CoordConv's maps, the cells of an object, NMS among neighbours and of masks, decoupling."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu import solo
from condinst_edu.coordinates import coordconv
from condinst_edu.layers.images import Size

Kernel = Literal["gaussian", "linear"]


def coordconv_missing(size: Size, device: torch.device | None = None) -> Tensor:
    return torch.zeros_like(coordconv(size, device))


def coordconv_swapped(size: Size, device: torch.device | None = None) -> Tensor:
    return coordconv(size, device).flip(0)


def coordconv_from_corner(size: Size, device: torch.device | None = None) -> Tensor:
    return (coordconv(size, device) + 1) / 2


def coordconv_edge_to_edge(size: Size, device: torch.device | None = None) -> Tensor:
    y, x = ((2 * torch.arange(n, device=device) + 1) / n - 1 for n in size)
    return torch.stack([x.expand(size), y[:, None].expand(size)])


def cells_swapped(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    return solo.claimed_cells(centers, boxes, size, grid, sigma).mT.contiguous()


def cells_of_the_centre(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    return solo.claimed_cells(centers, boxes, size, grid, 0)


def cells_of_the_box(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return solo.claimed_cells(middle, boxes, size, grid, sigma)


def cells_without_limit(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    half = 0.5 * sigma * (boxes[:, 2:] - boxes[:, :2])
    first = solo.grid_cells(centers - half, size, grid).clamp(min=0)
    last = solo.grid_cells(centers + half, size, grid).clamp(max=grid - 1)
    cell = torch.arange(grid, device=boxes.device)
    inside = (cell >= first[..., None]) & (cell <= last[..., None])
    return inside[:, 1, :, None] & inside[:, 0, None, :]


def cells_of_height_and_width(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    return solo.claimed_cells(centers, boxes, (size[1], size[0]), grid, sigma)


def points_of_all_neighbours(scores: Tensor) -> Tensor:
    return scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores)


def points_of_the_other_side(scores: Tensor) -> Tensor:
    return scores * (F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, 1:, 1:] == scores)


def points_across_classes(scores: Tensor) -> Tensor:
    highest = F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest.amax(dim=1, keepdim=True) == scores)


def points_above_and_left(scores: Tensor) -> Tensor:
    above = F.pad(scores, (0, 0, 1, 0))[:, :, :-1]
    left = F.pad(scores, (1, 0))[..., :-1]
    return scores * ((scores >= above) & (scores >= left))


def matrix_without_compensation(
    masks: Tensor, scores: Tensor, labels: Tensor, kernel: Kernel = "gaussian", sigma: float = 2.0
) -> Tensor:
    iou = _iou(masks, labels).triu(diagonal=1)
    return scores * (-sigma * iou.square()).exp().amin(dim=0)


def matrix_across_classes(
    masks: Tensor, scores: Tensor, labels: Tensor, kernel: Kernel = "gaussian", sigma: float = 2.0
) -> Tensor:
    return solo.matrix_nms(masks, scores, torch.zeros_like(labels), kernel, sigma)


def matrix_of_products(
    masks: Tensor, scores: Tensor, labels: Tensor, kernel: Kernel = "gaussian", sigma: float = 2.0
) -> Tensor:
    iou = _iou(masks, labels).triu(diagonal=1)
    decay = (-sigma * iou.square()).exp() / (-sigma * iou.amax(dim=0).square()).exp()[:, None]
    return scores * decay.clamp(max=1).prod(dim=0)


def matrix_by_the_worse(
    masks: Tensor, scores: Tensor, labels: Tensor, kernel: Kernel = "gaussian", sigma: float = 2.0
) -> Tensor:
    iou = _iou(masks, labels).tril(diagonal=-1)
    decay = (-sigma * iou.square()).exp() / (-sigma * iou.amax(dim=0).square()).exp()[:, None]
    return scores * decay.amin(dim=0)


def matrix_not_squared(
    masks: Tensor, scores: Tensor, labels: Tensor, kernel: Kernel = "gaussian", sigma: float = 2.0
) -> Tensor:
    iou = _iou(masks, labels).triu(diagonal=1)
    return scores * ((-sigma * iou).exp() / (-sigma * iou.amax(dim=0)).exp()[:, None]).amin(dim=0)


def _iou(masks: Tensor, labels: Tensor) -> Tensor:
    """IoU (N, N) of masks of the same class, 0 between classes."""
    flat = masks.flatten(1).float()
    overlap, area = flat @ flat.T, flat.sum(dim=1)
    return overlap / (area[:, None] + area - overlap).clamp(min=1) * (labels[:, None] == labels)


def decoupled_swapped(columns: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    grid = len(rows)
    return rows[k % grid].sigmoid() * columns[k // grid].sigmoid()


def decoupled_sum(columns: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    grid = len(rows)
    return (rows[k // grid] + columns[k % grid]).sigmoid()


def decoupled_logits(columns: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    grid = len(rows)
    return (rows[k // grid] * columns[k % grid]).sigmoid()


def decoupled_smaller(columns: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    grid = len(rows)
    return torch.minimum(rows[k // grid].sigmoid(), columns[k % grid].sigmoid())
