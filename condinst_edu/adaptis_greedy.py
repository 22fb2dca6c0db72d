"""From masks that points draw to an image's instances: AdaptIS's greedy algorithm, and what its official code does.

`aggregate` is section 4 of the paper: points are proposed one after the other among the pixels that nothing has claimed
yet, and a mask is kept where less than half of it is claimed already. Where proposals come from is a function of its
own: at random (`RandomPoints`, the toy problem), or at the local maxima of a learned map (`RankedPoints`).
`aggregate_official` is the published code's variant, which differs in what its docstring lists.

Points are (x, y) in pixels. Legend: N instances, k points, K classes, H, W image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Draw = Callable[[Tensor], Tensor]
"""Points (k, 2) -> the probability of each pixel to be on the object under each point, (k, H, W)."""
Propose = Callable[[Tensor], Tensor]
"""Unknown pixels (H, W) bool -> the points (k, 2) to try next, of which the most confident counts; none ends it."""


class Step(NamedTuple):
    """One iteration: the points (k, 2) that were tried, which of them was best, its mask (H, W) and its fate."""

    points: Tensor
    best: int
    mask: Tensor
    kept: bool


class Aggregate(NamedTuple):
    """What was found: instances (H, W) int64, 0 for none, k for the k-th; C (N, H, W), their probabilities; points
    (N, 2) that drew them; scores (N,), the mean probability of each over the mask that it was kept for; all steps."""

    instances: Tensor
    probabilities: Tensor
    points: Tensor
    scores: Tensor
    steps: list[Step]

    @property
    def masks(self) -> Tensor:
        """The pixels of each instance (N, H, W) bool; no pixel has two."""
        ids = torch.arange(1, len(self.points) + 1, device=self.instances.device)
        return self.instances == ids[:, None, None]


def aggregate(
    draw: Draw, propose: Propose, segmented: Tensor, threshold: float = 0.4, overlap: float = 0.5, limit: int = 1000
) -> Aggregate:
    """The greedy algorithm: objects one by one.

    segmented (H, W) bool: the map S at the beginning, all False, or True on stuff; threshold T of a mask C > T;
    overlap: a new mask is kept if a smaller share of it than this is segmented already; limit: iterations at most,
    after which it ends as it does when all is segmented or no point is left. In the end a pixel goes to the instance
    with the highest probability there, argmax_i C_i, unless that is not above T.
    The paper does not say what ends a random search for points that give nothing: here, no point is tried twice.
    Source: adaptis:greedy-aggregation.
    """
    segmented = segmented.clone()
    size = tuple(segmented.shape)
    steps: list[Step] = []
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(steps) < limit and not segmented.all():
        points = propose(~segmented)
        if not len(points):
            break
        probabilities = draw(points)  # (k, H, W)
        masks = probabilities > threshold
        scores = mean_confidence(probabilities, masks)
        best = int(scores.argmax())
        mask = masks[best]
        area = int(mask.sum())
        keep = area > 0 and int((mask & segmented).sum()) < overlap * area
        if keep:
            segmented |= mask
            kept.append((probabilities[best], points[best], scores[best]))
        steps.append(Step(points, best, mask, keep))
    if not kept:
        empty = torch.zeros(size, dtype=torch.int64, device=segmented.device)
        nothing = empty.new_zeros((0, *size), dtype=torch.float32)
        return Aggregate(empty, nothing, nothing.new_zeros(0, 2), nothing.new_zeros(0), steps)
    confidence, found, scores = (torch.stack(parts) for parts in zip(*kept, strict=True))
    highest, index = confidence.max(dim=0)
    return Aggregate(torch.where(highest > threshold, index + 1, 0), confidence, found, scores, steps)


def mean_confidence(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Mean probability over each mask: (N, H, W) twice -> (N,), 0 for an empty mask."""
    masks = masks.flatten(1).to(probabilities.dtype)
    return (probabilities.flatten(1) * masks).sum(dim=1) / masks.sum(dim=1).clamp(min=1)


# ----------------------------------------------------------------------------------------------- where points come from


class RandomPoints:
    """Points at random among the unknown pixels that were not tried yet, `count` at a time.

    Source: adaptis:toy-protocol (7 points, of which the most confident counts).
    """

    def __init__(self, count: int = 7, generator: torch.Generator | None = None) -> None:
        self.count, self.generator = count, generator
        self.fresh: Tensor | None = None  # not tried yet

    def __call__(self, unknown: Tensor) -> Tensor:
        self.fresh = torch.ones_like(unknown) if self.fresh is None else self.fresh
        free = (unknown & self.fresh).nonzero()  # (F, 2), as (y, x)
        chosen = free[torch.randperm(len(free), generator=self.generator)[: self.count].to(free.device)]
        self.fresh[chosen[:, 0], chosen[:, 1]] = False
        return chosen.flip(1).float()


class RankedPoints:
    """Given points (k, 2), best first; each time the first one that is still unknown, and each one once."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __call__(self, unknown: Tensor) -> Tensor:
        x, y = self.points.long().unbind(dim=1)
        left = self.points[unknown[y, x]]  # what is segmented once stays so
        self.points = left[1:]
        return left[:1]


def find_local_maxima(
    scores: Tensor, threshold: float = 0.35, step: float = 0.025, eps: float = 0.003
) -> tuple[Tensor, Tensor]:
    """Local maxima of a map (H, W) of values in [0, 1], at most one of each basin: points (k, 2), basins (H, W) int64.

    A pixel is a maximum if its neighbours (of 8, in the image) are no higher and all at least `threshold`. In bands of
    values that are `step` wide, from 0.99 down to the threshold, and in each in reading order, a maximum that lies in
    no basin yet becomes a point, and a breadth-first search marks its basin: all that is reached over neighbours that
    rise by less than eps. Basins are numbered from 1; 0 is in none. Every pixel is visited once, a frontier at a time.
    Source: adaptis:local-maxima (the paper names the method; its details are the official code's).
    """
    height, width = scores.shape
    values = np.full((height + 2, width + 2), np.inf, np.float32)  # a frame that no search enters
    values[1:-1, 1:-1] = scores.detach().float().cpu().numpy()
    flat = values.ravel()
    around = np.array([dy * (width + 2) + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx])
    maxima = _maximal(values[1:-1, 1:-1], threshold)
    index = (np.flatnonzero(maxima) // width + 1) * (width + 2) + np.flatnonzero(maxima) % width + 1
    basins = np.zeros(flat.shape, np.int64)
    framed = basins.reshape(values.shape)
    framed[[0, -1]] = framed[:, [0, -1]] = -1
    found: list[int] = []
    level = np.float32(0.99)
    while level > np.float32(threshold):
        for pixel in index[flat[index] >= level]:
            if basins[pixel] == 0:
                found.append(pixel)
                _flood(flat, basins, pixel, len(found), around, np.float32(eps))
        level = np.float32(level - np.float32(step))
    rows, columns = np.divmod(np.array(found, dtype=np.int64), width + 2)
    points = torch.from_numpy(np.stack([columns - 1, rows - 1], axis=1).reshape(-1, 2)).float()
    return points.to(scores.device), torch.from_numpy(framed[1:-1, 1:-1].copy()).to(scores.device)


def _maximal(values: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Where no neighbour is higher and none is below the threshold."""
    map_ = torch.from_numpy(values)[None, None]
    highest = F.max_pool2d(map_, 3, stride=1, padding=1)[0, 0].numpy()
    centre = values.copy()
    lowest = -F.max_pool2d(-map_, 3, stride=1, padding=1)[0, 0].numpy()
    return (highest <= centre) & (lowest >= np.float32(threshold))


def _flood(
    flat: NDArray[np.float32],
    basins: NDArray[np.int64],
    start: int,
    basin: int,
    around: NDArray[np.int64],
    eps: np.float32,
) -> None:
    """Breadth-first search from one pixel over pixels without a basin, all of a frontier at once."""
    frontier = np.array([start])
    basins[start] = basin
    while len(frontier):
        neighbours = frontier[:, None] + around  # (f, 8)
        reached = (flat[frontier] + eps)[:, None] > flat[neighbours]
        frontier = np.unique(neighbours[reached & (basins[neighbours] == 0)])
        basins[frontier] = basin


def local_maxima_points(scores: Tensor, threshold: float = 0.35) -> Tensor:
    """`find_local_maxima`'s points, by falling value: (k, 2)."""
    points, _ = find_local_maxima(scores, threshold)
    x, y = points.long().unbind(dim=1)
    return points[scores[y, x].argsort(descending=True, stable=True)]


# ------------------------------------------------------------------------------------------------- classes, official


def class_of_mask(probabilities: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Class of each mask from 0, that with the largest sum of probabilities on it, and the mean of these.

    probabilities (K, H, W), of things; masks (N, H, W) bool. Returns (N,) int64 and (N,).
    Source: adaptis:class-of-mask.
    """
    weights = masks.flatten(1).to(probabilities.dtype)
    sums = weights @ probabilities.flatten(1).T  # (N, K)
    best, label = sums.max(dim=1)
    return label, best / weights.sum(dim=1).clamp(min=1)


def blur(scores: Tensor, width: int) -> Tensor:
    """Box filter of a map (H, W) as OpenCV has it: an even width reaches one pixel further up and left; reflected."""
    pads = [width // 2, width - 1 - width // 2] * 2
    padded = F.pad(scores[None, None].double(), pads, mode="reflect")  # equal sums stay equal: maxima depend on it
    return F.avg_pool2d(padded, width, stride=1)[0, 0].to(scores.dtype)


def aggregate_official(
    draw: Draw,
    scores: Tensor,
    things: Tensor,
    threshold: float = 0.4,
    overlap: float = 0.4,
    thing_threshold: float = 0.6,
    maximum_threshold: float = 0.35,
    eps: float = 0.003,
    step: float = 0.025,
    width: int = 5,
    limit: int = 500,
    least_pixels: int = 10,
    background_weight: float = 1.0,
    least_probability: float = 0.0,
) -> Aggregate:
    """The published code's algorithm, in place of section 4's.

    scores (H, W): the square of the proposal branch's probabilities; things (T, H, W): probabilities of the classes of
    things. It differs from the paper: proposals are found once, in the order of `find_local_maxima`, after scores are
    set to 0 where no thing reaches `thing_threshold` and are blurred over `width` pixels; the map S begins empty, so
    stuff does not count as segmented; a mask below `least_pixels` is dropped; skipped points count for the limit; and
    in the end the background, background_weight * (1 - the sum of things), takes part in the argmax, as instance 0, and
    takes all pixels where no instance reaches `least_probability`.
    """
    scores = torch.where(things.amax(dim=0) < thing_threshold, 0, scores)
    scores = blur(scores, width) if width > 1 else scores
    points, _ = find_local_maxima(scores, maximum_threshold, step, eps)
    segmented = torch.zeros_like(scores, dtype=torch.bool)
    steps: list[Step] = []
    kept: list[tuple[Tensor, Tensor]] = []
    for point in points[:limit]:
        x, y = point.long().tolist()
        if segmented[y, x]:
            continue
        probabilities = draw(point[None])[0]
        mask = probabilities > threshold
        area = int(mask.sum())
        keep = area >= least_pixels and int((mask & segmented).sum()) / area < overlap
        if keep:
            segmented |= mask
            kept.append((probabilities, point))
        steps.append(Step(point[None], 0, mask, keep))
    found = torch.stack([point for _, point in kept]) if kept else points[:0]
    confidence = torch.stack([p for p, _ in kept]) if kept else things[:0]  # (N, H, W)
    instances = compete(confidence, things, background_weight, least_probability)
    return Aggregate(instances, confidence, found, mean_confidence(confidence, confidence > threshold), steps)


def compete(
    confidence: Tensor, things: Tensor, background_weight: float = 1.0, least_probability: float = 0.0
) -> Tensor:
    """The published code's last step: instances (H, W) from their probabilities (N, H, W); see `aggregate_official`."""
    background = background_weight * (1 - things.sum(dim=0))
    instances = torch.cat([background[None], confidence]).argmax(dim=0)
    if len(confidence):
        instances[confidence.amax(dim=0) < least_probability] = 0
    return instances


def cut_around(probabilities: Tensor, points: Tensor, radius: int) -> Tensor:
    """Probabilities (k, H, W), 0 outside a square around each point (k, 2): x - radius to x + radius - 1, and so in y.

    For images with many objects that look the same; the published code's cut_radius.
    """
    near = []
    for side, at in zip(probabilities.shape[:0:-1], points.T, strict=True):  # width with x, height with y
        away = torch.arange(side, device=points.device) - at[:, None]  # (k, W), (k, H)
        near.append((away >= -radius) & (away < radius))
    return torch.where(near[1][:, :, None] & near[0][:, None, :], probabilities, 0)
