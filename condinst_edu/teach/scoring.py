"""How instance segmentation is scored, from scratch: mask IoU, matching, average precision, COCO's run lengths.

The numbers are pycocotools' (`condinst_edu.engine.evaluate` uses pycocotools itself: it is faster); this is the form
to read. Legend: N detections, M objects of one class in one image, H, W image.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = torch.from_numpy(np.linspace(0.5, 0.95, 10))  # IoU from which a detection counts as a hit
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))  # recalls at which the precision is read


class ImageScores(NamedTuple):
    """What one class in one image gives to AP: iou (N, M), scores (N,), areas in pixels (N,), (M,), crowd (M,) bool."""

    iou: Tensor
    scores: Tensor
    areas: Tensor
    object_areas: Tensor
    crowd: Tensor


def rle_counts(mask: Tensor) -> list[int]:
    """Run lengths of a mask (H, W) bool, column by column, as COCO has them: zeros first (0 of them if need be)."""
    pixels = mask.T.flatten().int()
    borders = (torch.nonzero(pixels.diff()).flatten() + 1).tolist()
    ends = [0, *borders, pixels.numel()]
    runs = [b - a for a, b in itertools.pairwise(ends)]
    return [0, *runs] if pixels[0] else runs


def mask_iou(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    """Intersection over union of masks: detected (N, H, W), objects (M, H, W) bool -> (N, M) float64.

    crowd (M,) bool marks regions that cover many objects: there, the union is the detection's own area, so that
    whatever lies within the region fits it perfectly. Two empty masks have 0.
    """
    a, b = detected.flatten(1).double(), objects.flatten(1).double()
    overlap = a @ b.T  # (N, M)
    area = a.sum(dim=1)[:, None]
    union = torch.where(crowd, area, area + b.sum(dim=1) - overlap)
    return overlap / union.clamp(min=1)


def match_objects(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    """Which object each detection finds: (N,) int64, -1 for none.

    iou (N, M), detections by falling score; crowd, ignored (M,) bool (crowds are ignored ones too). A detection takes
    the free object of highest IoU, at least `threshold`; only where there is none, an ignored one. A crowd stays free.
    """
    free = torch.ones_like(crowd)
    found = []
    for row in iou.double():
        best = -1
        for allowed in (~ignored, ignored):
            score = row.masked_fill(~(free & allowed), -1)
            if best < 0 and len(score) and score.max() >= threshold:
                best = len(score) - 1 - int(score.flip(0).argmax())  # of equals the last one, as in pycocotools
        if best >= 0 and not crowd[best]:
            free[best] = False
        found.append(best)
    return torch.tensor(found, dtype=torch.int64)


def precision_recall(scores: Tensor, hits: Tensor, num_objects: int) -> tuple[Tensor, Tensor]:
    """Precision and recall (N,) float64 after each detection, by falling score. scores (N,), hits (N,) bool."""
    hits = hits[scores.argsort(descending=True, stable=True)].double()
    found = hits.cumsum(0)
    count = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    return found / count, found / num_objects


def average_precision(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    """Mean of the interpolated precision at 101 recalls from 0 to 1.

    The interpolated precision at a recall is the best precision at this or any higher recall, 0 beyond the last.
    scores (N,); hits (N,) bool, whether each detection finds an object; num_objects: how many there were to find, > 0.
    """
    precision, recall = precision_recall(scores, hits, num_objects)
    best = precision.flip(0).cummax(0).values.flip(0)  # the highest from here on
    index = torch.searchsorted(recall, RECALLS)  # the first detection that reaches each recall
    return float(torch.cat([best, best.new_zeros(1)])[index].mean())


def coco_average_precision(
    images: Sequence[ImageScores],
    area_range: tuple[float, float] = (0, 1e10),
    thresholds: Tensor = THRESHOLDS,
    limit: int = 100,
) -> float:
    """COCO's AP of one class: the mean over IoU thresholds, -1 where there is no object to find.

    area_range: areas in pixels that count, both ends included: objects outside are ignored, and so are detections
    that find an ignored object, or none while they are outside themselves. limit: detections per image, the best.
    """
    low, high = area_range
    num_objects = sum(
        int(((i.object_areas >= low) & (i.object_areas <= high) & ~i.crowd).sum()) for i in map(_checked, images)
    )
    if not num_objects:
        return -1.0
    values = []
    for threshold in thresholds.tolist():
        parts = [_hits(image, area_range, threshold, limit) for image in images]
        scores, hits = (torch.cat(x) for x in zip(*parts, strict=True))
        values.append(average_precision(scores, hits, num_objects) if len(scores) else 0.0)
    return sum(values) / len(values)


def _checked(image: ImageScores) -> ImageScores:
    if image.iou.shape != (len(image.scores), len(image.crowd)):
        raise ValueError(f"iou must be (detections, objects), not {tuple(image.iou.shape)}")
    return image


def _hits(image: ImageScores, area_range: tuple[float, float], threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Scores of the detections that count in one image, and which of these are hits."""
    order = image.scores.argsort(descending=True, stable=True)[:limit]
    low, high = area_range
    ignored = image.crowd | (image.object_areas < low) | (image.object_areas > high)
    found = match_objects(image.iou[order], image.crowd, ignored, min(threshold, 1 - 1e-10))
    outside = (image.areas[order] < low) | (image.areas[order] > high)
    on_ignored = torch.cat([ignored, ignored.new_zeros(1)])[found]  # -1 reads the last
    counts = ~on_ignored & ((found >= 0) | ~outside)
    return image.scores[order][counts], (found >= 0)[counts]
