"""CondInst's equations and rules as loops, written straight from the paper: what the library is compared with.

Slow, and meant to be read beside the formulas. Points are (x, y) in pixels; cell (i, j) of a map with stride s stands
for pixel (s j + s // 2, s i + s // 2). Legend: C channels, H, W map.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------------- the mask head


def controller(channels: Sequence[int] = (10, 8, 8, 1)) -> tuple[int, int]:
    """How many weights and biases 1x1 convolutions of these channels have: 152 and 17. Source: condinst:controller."""
    return sum(i * o for i, o in pairwise(channels)), sum(channels[1:])


def split_parameters(theta: Tensor, channels: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """theta (P,) as matrices (out, in) and vectors (out,), one after the other: all weights, then all biases.

    The paper only says that they are concatenated; this is the official order. Source: condinst:controller.
    """
    numbers = iter(theta.unbind())
    weights = [
        torch.stack([torch.stack([next(numbers) for _ in range(i)]) for _ in range(o)]) for i, o in pairwise(channels)
    ]
    biases = [torch.stack([next(numbers) for _ in range(o)]) for o in channels[1:]]
    return weights, biases


def relative_coordinates(size: tuple[int, int], stride: int, place: Sequence[float], unit: float) -> Tensor:
    """O_xy: where each cell lies as seen from the location, in units; maps (2, H, W) of x and y.

    Source: condinst:relative-coordinates (the unit is the official code's: 8 strides of the instance's level).
    """
    height, width = size
    x = [[(stride * j + stride // 2 - place[0]) / unit for j in range(width)] for _ in range(height)]
    y = [[(stride * i + stride // 2 - place[1]) / unit for _ in range(width)] for i in range(height)]
    return torch.tensor([x, y], dtype=torch.float64)


def absolute_coordinates(size: tuple[int, int], stride: int) -> Tensor:
    """Where each cell lies in the image, -1 to 1 from edge to edge; maps (2, H, W). Source: condinst:table-3."""
    height, width = size
    x = [[2 * (stride * j + stride // 2) / (stride * width) - 1 for j in range(width)] for _ in range(height)]
    y = [[2 * (stride * i + stride // 2) / (stride * height) - 1 for _ in range(width)] for i in range(height)]
    return torch.tensor([x, y], dtype=torch.float64)


def mask_head(
    features: Tensor,
    theta: Tensor,
    place: Sequence[float],
    unit: float,
    stride: int,
    channels: Sequence[int] = (10, 8, 8, 1),
    coordinates: Literal["relative", "absolute", "none"] = "relative",
) -> Tensor:
    """MaskHead(F_xy; theta_xy) of one instance: coordinates beside the features, 1x1 convolutions, ReLU between them.

    features (C, H, W), theta (P,) -> logits (H, W). Source: condinst:eq-2.
    """
    size = (features.shape[1], features.shape[2])
    maps = list(features)
    if coordinates == "relative":
        maps = [*relative_coordinates(size, stride, place, unit), *maps]
    if coordinates == "absolute":
        maps = [*absolute_coordinates(size, stride), *maps]
    weights, biases = split_parameters(theta, channels)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        outputs = [b + sum(w * x for w, x in zip(row, maps, strict=True)) for row, b in zip(weight, bias, strict=True)]
        maps = outputs if layer == len(weights) - 1 else [y.clamp(min=0) for y in outputs]
    return maps[0]


def spread(cells: int, factor: int) -> Tensor:
    """Upsampling along one side as a matrix (cells * factor, cells): output k reads between two cells, or on one."""
    matrix = torch.zeros(cells * factor, cells, dtype=torch.float64)
    for k in range(cells * factor):
        position = min(max((k - factor // 2) / factor, 0), cells - 1)
        low = int(position)
        matrix[k, low] += 1 - (position - low)
        matrix[k, min(low + 1, cells - 1)] += position - low
    return matrix


def upsampling(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear upsampling (H, W) -> (factor H, factor W). Source: condinst:upsampling.

    The paper says "bilinear"; that output k reads position (k - factor // 2) / factor is the official code's.
    """
    return spread(x.shape[0], factor) @ x @ spread(x.shape[1], factor).T


# --------------------------------------------------------------------------------------------------------------- losses


def dice(scores: Tensor, truth: Tensor, eps: float = 1e-5) -> Tensor:
    """1 - 2 sum p t / (sum p^2 + sum t^2), V-Net's dice loss of one mask (H, W), row by row. Source: condinst:eq-2."""
    overlap, squares = scores.new_zeros(()), scores.new_zeros(())
    for p, t in zip(scores, truth.to(scores.dtype), strict=True):
        overlap = overlap + (p * t).sum()
        squares = squares + (p * p).sum() + (t * t).sum()
    return 1 - 2 * overlap / (squares + eps)


def target_mask(mask: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """M*_xy at the masks' resolution: the pixel that each cell stands for, False beyond the image. -> (H, W) bool."""
    rows = []
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = stride * i + stride // 2, stride * j + stride // 2
            rows.append(y < mask.shape[0] and x < mask.shape[1] and bool(mask[y, x]))
    return torch.tensor(rows).view(size)


def eq_2(logits: Sequence[Tensor], masks: Sequence[Tensor], stride: int, factor: int = 2) -> Tensor:
    """L_mask: the mean dice loss of the positive locations, 0 without any. Source: condinst:eq-2.

    logits: what `mask_head` gives for each, (H, W) with this stride; masks: of their objects, one value per pixel.
    """
    losses = []
    for each, mask in zip(logits, masks, strict=True):
        scores = upsampling(each, factor).sigmoid()
        losses.append(dice(scores, target_mask(mask, stride // factor, (scores.shape[0], scores.shape[1]))))
    return torch.stack(losses).sum() / len(losses) if losses else torch.zeros((), dtype=torch.float64)


def eq_1(fcos: Mapping[str, Tensor], mask: Tensor, weight: float = 1.0) -> Tensor:
    """L_overall = L_fcos + lambda L_mask, L_fcos being the sum of FCOS's three losses. Source: condinst:eq-1."""
    return sum(fcos.values(), torch.zeros_like(mask)) + weight * mask


def top_64(positive: Sequence[bool], scores: Sequence[float], limit: int = 64) -> list[int]:
    """The positive locations of an image that masks are trained at: the first by score. Source: condinst:top-64."""
    return sorted((at for at in range(len(scores)) if positive[at]), key=lambda at: -scores[at])[:limit]


def semantic_labels(masks: Tensor, labels: Sequence[int], stride: int) -> list[list[set[int]]]:
    """For each cell the labels that it may have: of the smallest masks (M, H, W) there, or 0 for none.

    The paper is silent on it, this is the official rule; several where areas tie. Source: condinst:semantic-loss.
    """
    areas = [int(mask.sum()) for mask in masks]
    rows = []
    for y in range(stride // 2, masks.shape[1], stride):
        row = []
        for x in range(stride // 2, masks.shape[2], stride):
            here = [m for m in range(len(masks)) if masks[m, y, x]]
            smallest = min((areas[m] for m in here), default=None)
            row.append({int(labels[m]) for m in here if areas[m] == smallest} or {0})
        rows.append(row)
    return rows


def semantic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of every class at every cell, by the number of covered cells: logits (B, K, H, W), labels (B, H, W).

    Source: condinst:semantic-loss.
    """
    total = logits.new_zeros(())
    for b, k, i, j in torch.cartesian_prod(*map(torch.arange, logits.shape)).tolist():
        p = logits[b, k, i, j].sigmoid()
        hit = int(labels[b, i, j]) == k + 1
        total = total - (0.25 * (1 - p) ** 2 * p.log() if hit else 0.75 * p**2 * (1 - p).log())
    return total / max(1, int((labels > 0).sum()))


# ------------------------------------------------------------------------------------------------------------ inference


def mask_iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks, 0 of empty ones."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def mask_nms(masks: Tensor, scores: Sequence[float], labels: Sequence[int], threshold: float) -> list[int]:
    """What stays, by falling score: each mask that overlaps no kept one of its class by more than the threshold.

    Source: condinst:table-5.
    """
    kept: list[int] = []
    for i in sorted(range(len(masks)), key=lambda i: -scores[i]):
        if not any(labels[i] == labels[k] and mask_iou(masks[i], masks[k]) > threshold for k in kept):
            kept.append(i)
    return kept


def panoptic_branch(pyramid: Sequence[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Logits (K, H, W) of P2 to P5, (C, H / 2^l, W / 2^l) each: upsampled to P2, concatenated, a 1x1 convolution.

    weight (K, 4 C), bias (K,). Source: condinst:panoptic-branch.
    """
    maps = [upsampling(channel, 2**level) for level, x in enumerate(pyramid) for channel in x]
    return torch.stack(
        [b + sum(w * x for w, x in zip(row, maps, strict=True)) for row, b in zip(weight, bias, strict=True)]
    )


def panoptic_fusion(
    things: Mapping[str, Any],
    stuff: Mapping[str, Any],
    min_score: float = 0.45,
    max_lost: float = 0.4,
    min_stuff: int = 64 * 64,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Segments over each other, the best instance first, then stuff: a map (H, W) of their numbers, (label, area) each.

    things: masks (N, H, W), labels, scores; stuff: masks (M, H, W), labels. That stuff of little area is left out is
    Panoptic-FPN's. Source: condinst:panoptic-fusion.
    """
    height, width = things["masks"].shape[1:]
    taken = [[0] * width for _ in range(height)]
    segments: list[tuple[int, int]] = []

    def add(mask: Tensor, label: int, is_thing: bool) -> None:
        pixels = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
        free = [(y, x) for y, x in pixels if not taken[y][x]]
        enough = len(pixels) - len(free) <= max_lost * len(pixels) if is_thing else len(free) >= min_stuff
        if free and enough:
            segments.append((label, len(free)))
            for y, x in free:
                taken[y][x] = len(segments)

    for i in sorted(range(len(things["scores"])), key=lambda i: -float(things["scores"][i])):
        if things["scores"][i] >= min_score:
            add(things["masks"][i], int(things["labels"][i]), True)
    for mask, label in zip(stuff["masks"], stuff["labels"], strict=True):
        add(mask, int(label), False)
    return torch.tensor(taken), segments
