"""Where a feature cell sits in the image, and the coordinate maps that are fed to mask heads.

A cell (i, j) of a map with stride s stands for the image pixel (s*j + s//2, s*i + s//2) (`condinst:locations`).
Points are (x, y); sizes are (height, width). CondInst, sections 2.1 and 3.3.

Legend: N instances or masks, H, W map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def locations(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    """Pixels that the cells of a map stand for, in row-major order.

    size: (height, width) of the map; stride in pixels. Returns (H * W, 2) float32, each row (x, y) in pixels.
    Source: condinst:locations.
    """
    ys, xs = (stride * torch.arange(n, device=device, dtype=torch.float32) + stride // 2 for n in size)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def neighbours(size: tuple[int, int], start: int = 0, device: torch.device | None = None) -> Tensor:
    """Indices of the 3x3 cells around each cell of a map whose cells count from `start`, row-major; -1 off the map.

    size: (height, width) of the map. Returns (H * W, 9) int64, each row the patch from top left to bottom right.
    """
    height, width = size
    index = torch.arange(start, start + height * width, device=device).view(height, width)
    padded = F.pad(index, (1, 1, 1, 1), value=-1)
    return padded.unfold(0, 3, 1).unfold(1, 3, 1).reshape(-1, 9)


def relative_coordinates(size: tuple[int, int], stride: int, centers: Tensor, scales: Tensor) -> Tensor:
    """Coordinate maps with each instance's own location as the origin: (pixel - location) / scale.

    size: (height, width) of the map; stride in pixels; centers (N, 2), the (x, y) location that predicted each
    instance, in pixels; scales (N,), the unit of length in pixels. Returns (N, 2, H, W): x map, y map.
    The mask head never builds this tensor (it folds the maps into its first layer): this is the definition.
    Official code: location - pixel, as section 2.3 may be read; here, as section 2.1 has it, pixel - location.
    Source: condinst:relative-coordinates.
    """
    pixels = locations(size, stride, centers.device).to(centers.dtype).reshape(*size, 2)  # (H, W, 2)
    offsets = pixels - centers[:, None, None]  # (N, H, W, 2)
    return (offsets / scales[:, None, None, None]).permute(0, 3, 1, 2)


def absolute_coordinates(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    """Coordinate maps with the middle of the map as the origin, the same for every instance, within [-1, 1].

    size: (height, width) of the map; stride in pixels. Returns (2, H, W) float32: x map, y map.
    The paper does not say how its absolute coordinates were scaled; [-1, 1] is CoordConv's choice.
    Source: condinst:table-3.
    """
    height, width = size
    half = torch.tensor([width * stride / 2, height * stride / 2], device=device)
    return (locations(size, stride, device).T / half[:, None] - 1).reshape(2, height, width)


def coordconv(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Coordinate maps from -1 at the first column or row to 1 at the last, which a convolution is fed beside features.

    size: (height, width) of the map. Returns (2, H, W) float32: x map, y map. Unlike `absolute_coordinates`, whose
    [-1, 1] is from edge to edge, the middles of the outermost cells are at -1 and 1, as in the official SOLO.
    Source: slides:solo-coordconv.
    """
    y, x = (torch.linspace(-1, 1, n, device=device) for n in size)
    return torch.stack([x.expand(size), y[:, None].expand(size)])


def relative_coordconv(
    size: tuple[int, int], stride: int, points: Tensor, radius: float, distance: bool = False
) -> Tensor:
    """Coordinate maps with a point as the origin, in units of a radius, clipped to [-1, 1].

    size: (height, width) of the map; stride in pixels; points (N, 2), (x, y) in pixels; radius in pixels. Returns
    (N, 2, H, W): x map, y map; with `distance` a third one, the distance to the point (the official code has it; there
    y comes first). Cell (i, j) stands for pixel (stride * j, stride * i) here, as in the official code and where the
    receptive fields of a ResNet's cells have their middle.
    Source: adaptis:relative-coordconv.
    """
    height, width = size
    y, x = (stride * torch.arange(n, device=points.device, dtype=points.dtype) for n in (height, width))
    dx = ((x - points[:, :1]) / radius)[:, None].expand(-1, height, -1)  # (N, H, W)
    dy = ((y - points[:, 1:]) / radius)[:, :, None].expand(-1, -1, width)
    maps = [dx, dy, torch.hypot(dx, dy)] if distance else [dx, dy]
    return torch.stack(maps, dim=1).clamp(-1, 1)


def mass_centers(masks: Tensor) -> Tensor:
    """Mass centres of masks: the mean pixel index of what they cover, which may lie off the mask (a ring's does).

    masks (N, H, W) bool or numbers >= 0. Returns (N, 2) float32, (x, y) in pixel indices; an empty mask gives the
    middle of the map. Source: condinst:center-region.
    """
    weights = masks.float()
    area = weights.sum(dim=(1, 2))
    height, width = masks.shape[1:]
    # No matrix products: autocast would take them in half precision, whose largest number such sums exceed.
    x = (weights.sum(dim=1) * torch.arange(width, device=masks.device)).sum(dim=1)
    y = (weights.sum(dim=2) * torch.arange(height, device=masks.device)).sum(dim=1)
    middle = torch.stack([weights.new_full((), (side - 1) / 2) for side in (width, height)])
    center = torch.stack([x, y], dim=1) / area[:, None]
    return torch.where(area[:, None] > 0, center, middle)
