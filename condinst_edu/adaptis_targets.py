"""What AdaptIS learns from: points drawn from objects, classes of pixels, which points make good proposals.

Legend: B images, N points of all images, M objects of an image, O objects with P points each, K classes of things,
S of stuff, H, W image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from condinst_edu.layers.images import Size, Target


class Queries(NamedTuple):
    """Points to train with: points (N, 2), image (N,) that each is in, masks (N, H, W): 1 on its object, 0 off it,
    -1 beyond the image's edge, and everywhere where the image has no object."""

    points: Tensor
    image: Tensor
    masks: Tensor


def sample_points(targets: Sequence[Target], sizes: Sequence[Size], size: Size, count: int, one: bool) -> Queries:
    """`count` points of every image: an object at random, then a pixel of it at random.

    targets: with full-size masks (M, H, W); sizes: of the images; size: of the batch; one: all points of an image from
    the same object, as the proposal branch is trained. Source: adaptis:point-sampling.
    """
    device = targets[0]["masks"].device
    points = torch.zeros(len(targets), count, 2, device=device)
    masks = torch.full((len(targets), count, *size), -1.0, device=device)
    for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        objects = target["masks"][target["masks"].flatten(1).any(dim=1)]  # (M, H, W)
        if len(objects):
            chosen = torch.randint(len(objects), (1 if one else count,), device=device).expand(count)
            masks[i, :, :height, :width] = objects[chosen].float()
            pixel = objects[chosen].flatten(1).float().multinomial(1).squeeze(1)  # (count,)
            points[i] = torch.stack([pixel % width, pixel // width], dim=1).float()
    image = torch.arange(len(targets), device=device).repeat_interleave(count)
    return Queries(points.flatten(0, 1), image, masks.flatten(0, 1))


def semantic_targets(
    targets: Sequence[Target], sizes: Sequence[Size], size: Size, num_things: int, stuff: int, rest: int = 0
) -> Tensor:
    """Class of every pixel (B, *size): 0..S - 1 stuff, S + label - 1 things, -1 beyond an image's edge.

    Labels above K are stuff, K + 1 being class 0. Of segments that cover each other the smallest counts; rest: class of
    the pixels without any, 0 for the background, -1 where they are void.
    """
    result = torch.full((len(targets), *size), -1, dtype=torch.int64, device=targets[0]["masks"].device)
    for padded, target, (height, width) in zip(result, targets, sizes, strict=True):
        classes = torch.where(
            target["labels"] > num_things, target["labels"] - num_things - 1, target["labels"] + stuff - 1
        )
        inside = padded[:height, :width].fill_(rest)
        masks = target["masks"].bool()
        for k in masks.flatten(1).sum(dim=1).argsort(descending=True).tolist():
            inside[masks[k]] = classes[k]
    return result


def proposal_labels(iou: Tensor, share: float = 0.2) -> Tensor:
    """Which points of an object are good proposals: the `share` of them with the highest IoU, one at least.

    iou (O, P) of the masks of P points of each of O objects. Returns (O, P), 1 or 0. Source: adaptis:proposal-branch.
    """
    best = iou.topk(max(1, round(share * iou.shape[1])), dim=1).indices
    return torch.zeros_like(iou).scatter_(1, best, 1.0)


def soft_proposal_labels(iou: Tensor, confidence: Tensor) -> Tensor:
    """The official code's labels in place of the paper's: iou, confidence (O, P) -> (O, P) in 0 and 0.7..1, or -1.

    IoUs are those of masks above an `AdaptiveThreshold`; confidence: mean probability inside the object. Points above
    0.95 times the 30th percentile of iou * confidence (0.99 times its least where all IoUs are within 0.1) are good, by
    degrees; an object without any IoU is ignored.
    """
    score = iou * confidence
    least, most = score.amin(dim=1, keepdim=True), score.amax(dim=1, keepdim=True)  # (O, 1)
    spread = iou.amax(dim=1, keepdim=True) - iou.amin(dim=1, keepdim=True)
    bound = torch.where(spread > 0.1, 0.95 * score.quantile(0.3, dim=1, keepdim=True), 0.99 * least)
    good = score > bound
    low = score.masked_fill(~good, torch.inf).amin(dim=1, keepdim=True)
    grade = torch.where(most - low > 1e-3, (score - low) / (most - low), 1)
    ignored = (iou < 0).any(dim=1) | (iou < 1e-5).all(dim=1)
    return torch.where(ignored[:, None], -1, torch.where(good, 0.7 + 0.3 * grade, 0))


class AdaptiveThreshold(nn.Module):
    """The threshold of the masks that soft labels are made from, which follows their IoU as training goes on.

    start: its first value; forward: probabilities (N, H, W), truth (N, H, W) in {1, 0, -1} -> the next value (). Tried
    are the threshold, and `reach` above and below it; it goes `rate` of the way to the one with the highest mean IoU of
    all masks that have an object. So every step is one of 0.00025 up, none, or one down, and the buffer `moves`, their
    sum, is all that a checkpoint keeps. Source: the official code's.
    """

    def __init__(self, start: float = 0.35, reach: float = 0.025, rate: float = 0.01) -> None:
        super().__init__()
        self.start, self.reach, self.rate = start, reach, rate
        self.moves: Tensor
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))

    @property
    def value(self) -> Tensor:
        return self.start + self.rate * self.reach * self.moves.double()

    @torch.no_grad()
    def forward(self, probabilities: Tensor, truth: Tensor) -> Tensor:
        moves = torch.tensor([0, 1, -1], device=truth.device)  # of equal IoUs the first counts
        tried = [mask_iou(probabilities > self.value + self.reach * move, truth) for move in (0, 1, -1)]
        self.moves += moves.take(torch.stack(tried).sum(dim=1).argmax())
        return self.value


def mask_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """IoU of masks with their own objects, pixels of truth -1 left out: (N, H, W) bool and in {1, 0, -1} -> (N,)."""
    masks, valid, truth = masks.flatten(1), truth.flatten(1) >= 0, truth.flatten(1) > 0
    overlap, union = (masks & truth).sum(dim=1), ((masks | truth) & valid).sum(dim=1)
    return overlap / union.clamp(min=1)
