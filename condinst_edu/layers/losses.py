"""Losses that several ideas share; the focal loss is torchvision's `sigmoid_focal_loss`.

Legend: N boxes or masks.
"""

import torch
from torch import Tensor, distributed


def normaliser(count: Tensor, least: float = 1.0) -> Tensor:
    """What a process divides its part of a loss by: the sum of all processes' counts, at least `least`, per process.

    count: a number (), without gradient. DistributedDataParallel takes the mean of the processes' gradients, which then
    is the gradient of one process that has all the images. In a single process: the count, at least `least`.
    """
    if processes() == 1:
        return count.clamp(min=least)
    total = count.clone()
    distributed.all_reduce(total)
    return total.clamp(min=least) / processes()


def processes() -> int:
    """How many processes train together: 1 unless torch.distributed says otherwise."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def dice_loss(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    """One minus the dice coefficient 2 * sum(p t) / (sum p^2 + sum t^2 + eps), per mask.

    scores (N, ...) in [0, 1]; targets (N, ...) in {0, 1}. Returns (N,) in [0, 1].
    Source: condinst:eq-2 (V-Net's dice, squares in the denominator).
    """
    scores, targets = scores.flatten(1), targets.flatten(1).to(scores.dtype)
    overlap = (scores * targets).sum(dim=1)
    return 1 - 2 * overlap / (scores.square().sum(dim=1) + targets.square().sum(dim=1) + eps)


def giou_loss(distances: Tensor, targets: Tensor, smooth: float = 0.0) -> Tensor:
    """One minus the generalised IoU of two boxes given as (left, top, right, bottom) distances from one location.

    distances, targets (N, 4) in any one unit. Returns (N,) in [0, 2]. smooth: added to intersection and union of the
    IoU (the official FCOS adds 1, in units of the stride; 0 gives torchvision's `generalized_box_iou_loss`).
    Source: condinst:eq-1 (the box term of L_fcos).
    """
    inner, outer = torch.minimum(distances, targets), torch.maximum(distances, targets)
    intersection, hull = _area(inner), _area(outer)
    union = _area(distances) + _area(targets) - intersection
    iou = (intersection + smooth) / (union + smooth).clamp(min=1e-7)
    return 1 - iou + (hull - union) / hull.clamp(min=1e-7)


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=-1)
    return (left + right) * (top + bottom)
