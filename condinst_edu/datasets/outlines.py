"""Polygons drawn at the size that training needs, exactly as if they had been drawn at full size first.

The official code moves the polygons with the image, draws them with pycocotools at full size, and reads every
stride-th pixel. Here pycocotools walks along the outline just the same, which gives run lengths; area and mass centre
are sums over the runs, and the cells of the mask map are looked up in them. No full-size bitmap is ever made, and no
number differs. Run lengths count pixels column by column, beginning with those outside the mask.

Legend: N masks, R the most runs of a mask, H, W image, h, w mask map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from torch import Tensor

from condinst_edu.layers.images import Size

Polygons = list[NDArray[np.float64]]  # of one object, each (x, y, x, y, ...) in pixels
Segmentation = Polygons | bytes  # or compressed RLE counts, of the stored size


class Placement(NamedTuple):
    """Where a stored image's pixels go: from one (height, width) to another, then mirrored, then turned upside down."""

    old: Size
    new: Size
    mirror: bool = False
    turn: bool = False

    def move(self, polygon: NDArray[np.float64]) -> NDArray[np.float64]:
        """The polygon in the image as it is placed."""
        points = polygon.reshape(-1, 2) * (self.new[1] / self.old[1], self.new[0] / self.old[0])
        if self.mirror:
            points[:, 0] = self.new[1] - points[:, 0]
        if self.turn:
            points[:, 1] = self.new[0] - points[:, 1]
        return points.reshape(-1)


class Drawn(NamedTuple):
    """Masks (N, h, w) bool, and of the full-size ones area (N,) and mass centre (N, 2) in pixel indices, (x, y)."""

    masks: Tensor
    area: Tensor
    centers: Tensor


def draw_polygons(objects: Sequence[Polygons], place: Placement, stride: int | None) -> Drawn:
    """The objects' masks at the cells stride//2, stride//2 + stride, ... of the placed image; None: at every pixel.

    Every cell is what pycocotools draws there at full size; the centre of an empty mask is (0, 0).
    """
    if not objects:
        size = [len(_cells(n, stride or 1)) for n in place.new]
        return Drawn(torch.zeros(0, *size, dtype=torch.bool), torch.zeros(0), torch.zeros(0, 2))
    rles = [
        mask_utils.merge(mask_utils.frPyObjects([place.move(polygon) for polygon in polygons], *place.new))
        for polygons in objects
    ]
    starts, ends = run_limits([rle["counts"] for rle in rles])
    area, centers = _moments(starts, ends, place.new[0])
    if stride is None:
        return Drawn(decode_masks([rle["counts"] for rle in rles], place.new), area, centers)
    return Drawn(_sample_runs(starts, ends, place.new, stride), area, centers)


def decode_masks(counts: Sequence[bytes], size: Size) -> Tensor:
    """Masks (N, *size) bool of N compressed RLEs."""
    if not counts:
        return torch.zeros((0, *size), dtype=torch.bool)
    masks = mask_utils.decode([{"size": size, "counts": c} for c in counts])  # (H, W, N), columns first in memory
    return torch.from_numpy(masks.transpose(2, 0, 1)).contiguous().view(torch.bool)


def run_limits(counts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel (exclusive) of each run inside N masks, from compressed RLE counts that are right: (N, R).

    Pixels count column by column; masks of fewer runs have empty ones at the end.

    Each number is a sequence of characters of 5 bits, lowest first, whose bit 6 says that more follow; from the fourth
    number of a mask on it is the difference to the number before the last.
    """
    digits = np.frombuffer(b"".join(counts), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits < 32) + 1  # of each number, in digits
    starts = np.concatenate([[0], ends[:-1]])
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts))
    numbers = np.add.reduceat((digits & 31) << places, starts)
    numbers -= np.where(digits[ends - 1] & 16, 1 << (5 * (ends - starts)), 0)  # the highest bit is the sign
    last = np.searchsorted(ends, np.cumsum([len(c) for c in counts]), side="right")
    amounts = np.diff(last, prepend=0)  # of numbers in each mask
    width = int(amounts.max())
    filled = np.arange(width + width % 2) < amounts[:, None]
    runs = np.zeros(filled.shape, np.int64)  # (N, 2R)
    runs[filled] = numbers
    runs[:, 1::2] = runs[:, 1::2].cumsum(axis=1)
    runs[:, 2::2] = runs[:, 2::2].cumsum(axis=1)
    runs[~filled] = 0
    limits = runs.cumsum(axis=1)
    return limits[:, 0::2], limits[:, 1::2]


def _moments(starts: NDArray[np.int64], ends: NDArray[np.int64], height: int) -> tuple[Tensor, Tensor]:
    """Area (N,) and mass centre (N, 2) of runs (N, R): whole numbers until the last division."""

    def sums(end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        x, y = np.divmod(end, height)  # sums of x and of y over the pixels before `end`: x full columns and y pixels
        return height * (x * (x - 1) // 2) + x * y, x * (height * (height - 1) // 2) + y * (y - 1) // 2

    area = (ends - starts).sum(axis=1)
    moments = [(after - before).sum(axis=1) for after, before in zip(sums(ends), sums(starts), strict=True)]
    centers = np.stack(moments, axis=1) / area.clip(min=1)[:, None]
    return torch.from_numpy(area.astype(np.float64)), torch.from_numpy(centers.astype(np.float32))


def _sample_runs(starts: NDArray[np.int64], ends: NDArray[np.int64], size: Size, stride: int) -> Tensor:
    """Masks (N, h, w) of runs (N, R): the cells whose pixels lie within a run."""
    height, width = (len(_cells(n, stride)) for n in size)

    def first_cell(pixel: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first cell, counted column by column, whose pixel is not before this one."""
        x, y = np.divmod(pixel, size[0])
        column = -((stride // 2 - x) // stride)
        on_column = column * stride + stride // 2 == x
        row = np.where(on_column, -((stride // 2 - y) // stride), 0).clip(0, height)
        return column.clip(0, width) * height + np.where(column < width, row, 0)

    first, last = first_cell(starts), first_cell(ends)
    mask, run = np.nonzero(first < last)
    first, lengths = first[mask, run], (last - first)[mask, run]
    cells = np.arange(lengths.sum()) + np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    columns, rows = np.divmod(cells, max(height, 1))
    masks = np.zeros((len(starts), height, width), bool)
    masks.reshape(-1)[np.repeat(mask, lengths) * (height * width) + rows * width + columns] = True
    return torch.from_numpy(masks)


def _cells(length: int, stride: int) -> range:
    """The pixels of a line that the cells of a map of that stride sit on."""
    return range(stride // 2, length, stride)
