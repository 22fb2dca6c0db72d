"""AdaptIS on images that are larger than those it has seen: crop by crop, and the objects of all crops put together.

What AdaIN normalises is a whole map, so a map of another size, with more objects, is normalised otherwise than in
training. A crop of the training images' size is not. Crops overlap; where two overlap, the same object is found twice,
and its two masks are recognised by their IoU there. Rules and numbers are the published code's, which has them for the
large images of Cityscapes; the paper does not speak of crops.

Legend: N instances so far, n of a crop, H, W image, h, w crop.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from condinst_edu.adaptis import AdaptIS
from condinst_edu.adaptis_greedy import Aggregate, mean_confidence
from condinst_edu.layers.images import Size

TOP_IOU, LEFT_IOU = 0.5, 0.3


class Crop(NamedTuple):
    """What was found in the crop whose first pixel is (x, y)."""

    x: int
    y: int
    found: Aggregate


def crop_offsets(length: int, crop: int, overlap: float = 0.2) -> tuple[list[int], int]:
    """Where the crops of one side begin, and how many pixels a crop shares with the one before.

    As few crops as overlap by at least this share of a crop, at equal distances; the last one ends with the image, and
    shares more.
    """
    if length <= crop:
        return [0], 0
    count = math.ceil((length / crop - overlap) / (1 - overlap))
    shared = int((count - length / crop) / (count - 1) * crop)
    return [*(k * (crop - shared) for k in range(count - 1)), length - crop], shared


def join_crops(
    crops: Iterable[Crop], size: Size, shared: tuple[int, int], first_is_one: bool = False
) -> tuple[Tensor, Tensor]:
    """The objects of all crops: probabilities (N, H, W), and the points (N, 2) that drew them first, in the image.

    crops: row by row; size: of the image; shared: pixels that crops share in y and in x. An object of a crop is one
    found before if, of all these, their IoU in the crop's upper shared part is the highest, and above 0.5, or else in
    its left part, above 0.3; otherwise it is a new one. Its probabilities are the mean over the crops that have it, and
    0 in the others. first_is_one: as in the published code, where the first object of every crop has the number of
    none, 0: it is compared with nothing, and goes to the first object of the image, wherever that is.
    """
    labels = torch.zeros(size, dtype=torch.int64)
    sums: list[Tensor] = []
    counts: list[Tensor] = []
    points: list[Tensor] = []
    for x, y, found in crops:
        count, (height, width) = len(found.points), found.instances.shape
        part = (slice(y, y + height), slice(x, x + width))
        here = found.instances.cpu()
        if first_is_one:
            here = torch.where(here == 1, 0, here)
        before = labels[part].clone()
        top = iou_of_labels(here[: shared[0]], before[: shared[0]], count, len(sums)) if y else None
        left = iou_of_labels(here[:, : shared[1]], before[:, : shared[1]], count, len(sums)) if x else None
        now = torch.zeros(count + 1, dtype=torch.int64)  # label in the image of each label in the crop
        for k in range(count):
            match = best_above(top, k, TOP_IOU) or best_above(left, k, LEFT_IOU)
            if first_is_one and k == 0 and sums:
                match = 1
            if not match:
                sums.append(found.probabilities.new_zeros(size))
                counts.append(found.probabilities.new_zeros(size))
                points.append(found.points[k] + found.points.new_tensor([x, y]))
                match = len(sums)
            sums[match - 1][part] += found.probabilities[k]
            counts[match - 1][part] += 1
            now[k + 1] = match
        labels[part] = now[here]
    if not sums:
        return torch.zeros(0, *size), torch.zeros(0, 2)
    return torch.stack(sums) / torch.stack(counts).clamp(min=1), torch.stack(points)


def iou_of_labels(a: Tensor, b: Tensor, count_a: int, count_b: int) -> Tensor:
    """IoU (count_a, count_b) of labels from 1 on in two maps (h, w) of them; 0 where there is neither."""
    pairs = torch.bincount((a * (count_b + 1) + b).flatten(), minlength=(count_a + 1) * (count_b + 1))
    both = pairs.view(count_a + 1, count_b + 1)
    union = both.sum(dim=1, keepdim=True) + both.sum(dim=0, keepdim=True) - both
    return (both / union.clamp(min=1))[1:, 1:]


def best_above(iou: Tensor | None, k: int, least: float) -> int:
    """The label with which object k of a crop has the highest IoU, if that is above the least; 0 for none."""
    if iou is None or not iou.shape[1]:
        return 0
    highest, index = iou[k].max(dim=0)
    return int(index) + 1 if highest > least else 0


@torch.no_grad()
def segment_large(
    model: AdaptIS, image: Tensor, crop: Size, overlap: float = 0.2, generator: torch.Generator | None = None
) -> Aggregate:
    """All instances of a large image (3, H, W) in [0, 1], found in crops (height, width) of the size of training.

    In each crop, the greedy algorithm as the model has it; in the end a pixel goes to the instance with the highest
    probability there, unless that is not above the model's threshold. No steps are kept.
    """
    size = (image.shape[1], image.shape[2])
    (rows, top), (columns, left) = (crop_offsets(n, c, overlap) for n, c in zip(size, crop, strict=True))
    crops = (
        Crop(x, y, model.look(image[:, y : y + crop[0], x : x + crop[1]]).aggregate(generator))
        for y in rows
        for x in columns
    )
    confidence, points = join_crops(crops, size, (top, left))
    instances = torch.zeros(size, dtype=torch.int64, device=confidence.device)
    if len(points):
        highest, index = confidence.max(dim=0)
        instances = torch.where(highest > model.threshold, index + 1, 0)
    scores = mean_confidence(confidence, confidence > model.threshold)
    return Aggregate(instances, confidence, points, scores, [])
