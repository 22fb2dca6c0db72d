"""Losses that several ideas share; the focal loss is torchvision's `sigmoid_focal_loss`.

Legend: N boxes or masks.
"""

import torch
import torch.nn.functional as F
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


def normalized_focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, detach: bool = True
) -> Tensor:
    """Focal loss of each mask, with weights that are divided by their sum.

    logits, targets (N, ...), targets 1 on the object, 0 off it, -1 to ignore; gamma of the weight (1 - p)^gamma, p the
    confidence in what is right. Returns (N,): the sum over pixels of -(1 - p)^gamma log(p) / P, P the sum of those
    weights, 0 where all is ignored. detach: P is held constant in the backward pass, as in the official code. alpha:
    further weights alpha on the object and 1 - alpha off it (official: 0.5 on toy data, half of our loss, else 0.25).
    Official: also times pixels over pixels not ignored.
    Source: adaptis:nfl.
    """
    positive = targets > 0
    log_p = F.logsigmoid(torch.where(positive, logits, -logits))
    weights = None if alpha is None else torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    return _normalized(log_p, targets >= 0, gamma, weights, detach)


def normalized_focal_softmax_loss(logits: Tensor, labels: Tensor, gamma: float = 1.0, detach: bool = True) -> Tensor:
    """The same for maps of classes: logits (N, K, H, W), labels (N, H, W) from 0, -1 to ignore -> (N,).

    The paper leaves the semantic branch's loss open; the official code takes this one, with gamma 1.
    """
    log_p = logits.log_softmax(dim=1).gather(1, labels.clamp(min=0)[:, None].long()).squeeze(1)  # (N, H, W)
    return _normalized(log_p, labels >= 0, gamma, None, detach)


def _normalized(log_p: Tensor, valid: Tensor, gamma: float, weights: Tensor | None, detach: bool) -> Tensor:
    focus = (-torch.expm1(log_p)).pow(gamma) * valid if gamma else valid.to(log_p.dtype)  # (1 - p)^gamma
    total = focus.flatten(1).sum(dim=1)
    if detach:
        total = total.detach()
    loss = -focus * log_p if weights is None else -focus * log_p * weights
    return loss.flatten(1).sum(dim=1) / total.clamp(min=1e-12)


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
