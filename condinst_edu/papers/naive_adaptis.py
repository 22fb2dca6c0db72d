"""AdaptIS's formulas and rules as loops, written straight from the paper: what the library is compared with.

Slow, and meant to be read beside the paper. Points are (x, y). Legend: C channels, H, W map, K classes.
"""

from collections.abc import Callable, Sequence
from math import hypot

import torch
from torch import Tensor


def adain(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """scale (x - mean) / deviation + shift of every channel: x (C, H, W), scale, shift (C,). Source: adaptis:adain."""
    maps = []
    for c in range(len(x)):
        mean = sum(x[c].flatten()) / x[c].numel()
        variance = sum((v - mean) ** 2 for v in x[c].flatten()) / x[c].numel()
        maps.append(scale[c] * (x[c] - mean) / (variance + eps) ** 0.5 + shift[c])
    return torch.stack(maps)


def embedding(features: Tensor, x: float, y: float) -> Tensor:
    """Q(x, y): features (C, H, W) read at a point in units of cells, each cell by its nearness.

    What the controller network takes. Source: adaptis:controller-network.
    """
    value = torch.zeros_like(features[:, 0, 0])
    for i in range(features.shape[1]):
        for j in range(features.shape[2]):
            value = value + features[:, i, j] * max(0.0, 1 - abs(x - j)) * max(0.0, 1 - abs(y - i))
    return value


def relative_coordconv(
    size: tuple[int, int], stride: int, place: Sequence[float], radius: float, distance: bool = False
) -> Tensor:
    """Maps (2, H, W) of x and y as seen from a point in units of R, clipped to [-1, 1].

    distance: a third map, of the official code. Source: adaptis:relative-coordconv.
    """
    maps = torch.empty(3, *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            dx, dy = (stride * j - place[0]) / radius, (stride * i - place[1]) / radius
            for c, v in enumerate((dx, dy, hypot(dx, dy))):
                maps[c, i, j] = max(-1.0, min(1.0, v))
    return maps if distance else maps[:2]


# --------------------------------------------------------------------------------------------------------------- losses


def confidence(logit: Tensor, target: float) -> Tensor:
    """p_ij: the probability that a pixel gives to the truth."""
    return torch.sigmoid(logit) if target == 1 else 1 - torch.sigmoid(logit)


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """FL(i, j) of each pixel with a target of 0 or 1: (H, W) twice -> (pixels,); gamma 0 is BCE.

    Source: adaptis:focal.
    """
    pairs = zip(logits.flatten(), targets.flatten().tolist(), strict=True)
    p = [confidence(z, t) for z, t in pairs if t >= 0]
    return torch.stack([-((1 - each) ** gamma) * each.log() for each in p])


def nfl(logits: Tensor, targets: Tensor, gamma: float = 2.0, detach: bool = True) -> Tensor:
    """Normalized focal loss of a mask: the sum of FL over the sum P of its weights, held constant.

    logits, targets (H, W), targets 1, 0 or less for pixels that do not count. Source: adaptis:nfl.
    """
    total, weights = logits.new_zeros(()), logits.new_zeros(())
    for z, t in zip(logits.flatten(), targets.flatten().tolist(), strict=True):
        if t >= 0:
            p = confidence(z, t)
            weights = weights + (1 - p) ** gamma
            total = total - (1 - p) ** gamma * p.log()
    return total / (weights.detach() if detach else weights)


def point_sampling(masks: Tensor) -> Tensor:
    """How likely each pixel is drawn: an object at random, then one of its pixels: masks (M, H, W) -> (H, W).

    Source: adaptis:point-sampling.
    """
    chance = torch.zeros(masks.shape[1:], dtype=torch.float64)
    for mask in masks:
        for y, x in mask.nonzero().tolist():
            chance[y, x] += 1 / len(masks) / int(mask.sum())
    return chance


def proposal_labels(iou: Sequence[float], share: float = 0.2) -> list[bool]:
    """Which of an object's points are positive: the fifth with the best masks, at least one.

    Source: adaptis:proposal-branch.
    """
    ranked = sorted(range(len(iou)), key=lambda i: -iou[i])
    best = ranked[: max(1, round(share * len(iou)))]
    return [i in best for i in range(len(iou))]


# ------------------------------------------------------------------------------------------------------------ inference


def greedy_aggregation(
    draw: Callable[[float, float], Tensor],
    points: Sequence[Sequence[float]],
    size: tuple[int, int],
    threshold: float = 0.4,
) -> Tensor:
    """Section 4, one point after the other: the number of the object of each pixel (H, W), 0 for none.

    draw: C_i (H, W) of a point (x, y); threshold: T. Source: adaptis:greedy-aggregation.
    """
    segmented: set[tuple[int, int]] = set()
    kept: list[Tensor] = []
    for x, y in points:
        if (y, x) in segmented:
            continue
        c = draw(x, y)
        mask = {(i, j) for i in range(size[0]) for j in range(size[1]) if c[i, j] > threshold}
        if mask and len(mask & segmented) < 0.5 * len(mask):
            segmented |= mask
            kept.append(c)
    result = torch.zeros(size, dtype=torch.int64)
    for i in range(size[0]):
        for j in range(size[1]):
            best = max(range(len(kept)), key=lambda k: float(kept[k][i, j]), default=None)
            if best is not None and kept[best][i, j] > threshold:
                result[i, j] = best + 1
    return result


def most_confident(probabilities: Tensor, threshold: float = 0.4) -> int:
    """Which of the masks that random points draw is kept: that with the highest mean probability above T.

    probabilities (7, H, W). Source: adaptis:toy-protocol.
    """
    means = []
    for c in probabilities:
        above = [p for p in c.flatten().tolist() if p > threshold]
        means.append(sum(above) / len(above) if above else 0.0)
    return means.index(max(means))


def local_maxima(
    values: Tensor, threshold: float, step: float = 0.025, eps: float = 0.003
) -> tuple[list[list[int]], Tensor]:
    """Points (x, y) of the local maxima of a map (H, W) and their basins, flooded breadth first with a queue.

    Bands of values from the top down and the slack of a step are the official code's. Source: adaptis:local-maxima.
    """
    height, width = values.shape
    v, basins, points = values.tolist(), [[0] * width for _ in range(height)], []

    def neighbours(i: int, j: int) -> list[tuple[int, int]]:
        around = [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
        return [(a, b) for a, b in around if 0 <= a < height and 0 <= b < width]

    level = torch.tensor(0.99)
    while level > threshold:
        for i in range(height):
            for j in range(width):
                if v[i][j] < level or basins[i][j]:
                    continue
                if any(v[a][b] > v[i][j] or v[a][b] < threshold for a, b in neighbours(i, j)):
                    continue
                points.append([j, i])
                queue, basins[i][j] = [(i, j)], len(points)
                while queue:
                    a, b = queue.pop(0)
                    for c, d in neighbours(a, b):
                        if not basins[c][d] and v[a][b] + eps > v[c][d]:
                            basins[c][d] = len(points)
                            queue.append((c, d))
        level = level - torch.tensor(step)
    return points, torch.tensor(basins)


def class_of_mask(probabilities: Tensor, mask: Tensor) -> int:
    """l(M): the class, from 0, with the largest sum of p^l over the mask: (K, H, W), (H, W) bool.

    Source: adaptis:class-of-mask.
    """
    sums = [sum(float(p[y, x]) for y, x in mask.nonzero().tolist()) for p in probabilities]
    return sums.index(max(sums))
