"""BlendMask's blender and SOLO's rules as loops, as the slides tell them: what the library is compared with.

Slow, and meant to be read beside the slides; what these leave open is the official code's, and said so. Points are
(x, y), boxes (x0, y0, x1, y1), in pixels. Legend: K bases, S cells along a side of a grid, H, W map.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from condinst_edu.papers.naive_fcos import focal

# ------------------------------------------------------------------------------------------------------------ BlendMask


def read(maps: Tensor, y: float, x: float) -> Tensor:
    """All channels of maps (K, H, W) at a point in units of cells, bilinearly, 0 where a whole cell beyond the edge."""
    height, width = maps.shape[-2:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return maps[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    i, j = int(y), int(x)
    below, right = min(i + 1, height - 1), min(j + 1, width - 1)
    upper = (1 - (x - j)) * maps[:, i, j] + (x - j) * maps[:, i, right]
    lower = (1 - (x - j)) * maps[:, below, j] + (x - j) * maps[:, below, right]
    return (1 - (y - i)) * upper + (y - i) * lower


def crop(bases: Tensor, box: Sequence[float], stride: float, size: int = 56) -> Tensor:
    """The bases (K, H, W) at the middle of each of size x size equal parts of a box: RoIAlign with one sample."""
    x0, y0, x1, y1 = box
    rows = []
    for i in range(size):
        y = (y0 + (i + 0.5) / size * (y1 - y0)) / stride - 0.5  # cell 0 lies around half a stride
        xs = [(x0 + (j + 0.5) / size * (x1 - x0)) / stride - 0.5 for j in range(size)]
        rows.append(torch.stack([read(bases, y, x) for x in xs], dim=-1))
    return torch.stack(rows, dim=-2)


def blend(crops: Tensor, attention: Tensor) -> Tensor:
    """The mask (R, R) of one box: cell by cell the bases, weighted by the softmax of the attention there.

    crops (K, R, R); attention (K, a, a), read bilinearly at R x R cells. Source: slides:blendmask-blender.
    """
    size, a = crops.shape[-1], attention.shape[-1]
    cells = []
    for i in range(size):
        for j in range(size):
            y, x = (min(max((n + 0.5) * a / size - 0.5, 0), a - 1) for n in (i, j))
            e = read(attention, y, x).exp()
            cells.append((e / e.sum() * crops[:, i, j]).sum())
    return torch.stack(cells).view(size, size)


def yolact(bases: Tensor, vector: Sequence[float]) -> Tensor:
    """YOLACT's mask before it is cropped: whole bases (K, H, W), a weight each, added. Source: slides:yolact-vector."""
    total = torch.zeros_like(bases[0])
    for w, basis in zip(vector, bases, strict=True):
        total = total + float(w) * basis
    return total


def fcis(crops: Tensor, grid: int = 7) -> Tensor:
    """FCIS's mask: part (i, j) of a grid over the box is a copy of basis grid * i + j: (K, R, R) -> (R, R).

    Source: slides:fcis.
    """
    size = crops.shape[-1]
    rows = [[crops[grid * (i * grid // size) + j * grid // size, i, j] for j in range(size)] for i in range(size)]
    return torch.stack([torch.stack(row) for row in rows])


# ----------------------------------------------------------------------------------------------------------------- SOLO


def solo_channel(i: int, j: int, grid: int) -> int:
    """k = i S + j: the channel of the cell in row i and column j. Source: slides:solo-grid."""
    return i * grid + j


def solo_cells(
    center: Sequence[float], box: Sequence[float], size: tuple[int, int], grid: int, sigma: float = 0.2
) -> list[tuple[int, int]]:
    """Cells (i, j) of a grid over an image of a size (height, width) that an object claims.

    Those within `sigma` of its box around its mass centre, at most 3 x 3 of them: the slides show it, the numbers are
    the official code's, and so is float32, which decides where a centre lies on a border. Source: slides:solo-grid.
    """
    f = np.float32
    pitch = f(1 / grid)

    def cell(v: float | np.floating, extent: int) -> int:
        return int(np.trunc(f(f(v) / f(extent)) / pitch))

    half = [f(f(0.5) * f(box[2] - box[0])) * f(sigma), f(f(0.5) * f(box[3] - box[1])) * f(sigma)]
    middle = [cell(center[0], size[1]), cell(center[1], size[0])]
    left = max(0, cell(f(center[0]) - half[0], size[1]), middle[0] - 1)
    right = min(grid - 1, cell(f(center[0]) + half[0], size[1]), middle[0] + 1)
    top = max(0, cell(f(center[1]) - half[1], size[0]), middle[1] - 1)
    bottom = min(grid - 1, cell(f(center[1]) + half[1], size[0]), middle[1] + 1)
    return [(i, j) for i in range(top, bottom + 1) for j in range(left, right + 1)]


def solo_owners(
    centers: Sequence[Sequence[float] | None],
    boxes: Sequence[Sequence[float]],
    size: tuple[int, int],
    grid: int,
    scales: tuple[float, float],
    sigma: float = 0.2,
) -> dict[tuple[int, int], int]:
    """The object of each positive cell (i, j) of one level: of the level's sizes, the later one where several claim it.

    centers: mass centres, None of an empty mask; scales: the least and the greatest square root of a box's area that
    the level takes. Source: slides:solo-levels.
    """
    owners: dict[tuple[int, int], int] = {}
    for number, (center, box) in enumerate(zip(centers, boxes, strict=True)):
        length = np.sqrt(np.float32(box[2] - box[0]) * np.float32(box[3] - box[1]))
        if center is not None and scales[0] <= length <= scales[1]:
            owners |= dict.fromkeys(solo_cells(center, box, size, grid, sigma), number)
    return owners


def solo_losses(cells: Sequence[tuple[Tensor, int, Tensor | None, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Focal loss of the classes of all cells, dice loss of the masks of the positive ones, times 3.

    cells, of all levels and images: class probabilities (K,), the label, 0 for none, and of positive cells the mask's
    probabilities and its target, (h, w) both. Divisors and 0.001 are the official code's. Source: slides:solo-losses.
    """
    classes = dice = cells[0][0].new_zeros(())
    count = 0
    for probabilities, label, p, t in cells:
        for k, probability in enumerate(probabilities, start=1):
            classes = classes + focal(probability, k == label)
        if p is not None and t is not None:
            dice = dice + 1 - 2 * (p * t).sum() / ((p * p).sum() + 0.001 + (t * t).sum() + 0.001)
            count += 1
    return classes / (count + 1), 3 * dice / max(count, 1)


def coordconv(size: tuple[int, int]) -> Tensor:
    """Maps (2, H, W) of x and y, -1 in the first cell, 1 in the last. Source: slides:solo-coordconv."""
    height, width = size
    maps = torch.empty(2, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            maps[0, i, j], maps[1, i, j] = -1 + 2 * j / (width - 1), -1 + 2 * i / (height - 1)
    return maps


def decoupled(columns: Tensor, rows: Tensor, k: int, grid: int) -> Tensor:
    """p(k) = p(i) p(j) of cell k = i S + j: the maps of its row and its column multiplied.

    columns, rows (S, H, W): probabilities. Source: slides:decoupled-solo.
    """
    i, j = divmod(k, grid)
    return rows[i] * columns[j]
