"""What can be read off binary masks: their mass centres, the boxes around them.

Legend: M, N masks, H, W image.
"""

import torch
from torch import Tensor


def exact_centers(masks: Tensor) -> Tensor:
    """Mass centres (M, 2), (x, y) in pixel indices, float32, from whole sums: on a cell's border the last bit counts.

    masks (M, H, W) bool; the centre of an empty one is NaN.
    """
    columns, rows = masks.sum(dim=1), masks.sum(dim=2)  # (M, W), (M, H)
    sums = [(count * torch.arange(count.shape[1], device=masks.device)).sum(dim=1) for count in (columns, rows)]
    return torch.stack(sums, dim=1).float() / rows.sum(dim=1).float()[:, None]


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy, in pixels, around masks (N, H, W) bool; zeros around an empty one."""
    found = []
    for covered in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        place = torch.arange(1, covered.shape[1] + 1, device=masks.device) * covered
        last = place.amax(dim=1)
        first = torch.where(covered, place - 1, covered.shape[1]).amin(dim=1)
        found += [torch.minimum(first, last), last]
    return torch.stack([found[0], found[2], found[1], found[3]], dim=1).float()
