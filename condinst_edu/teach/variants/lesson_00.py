"""Variants of lesson 0: mask IoU, run lengths, matching, average precision."""

import torch
from torch import Tensor
from torchvision.ops import box_iou

from condinst_edu.teach.scoring import RECALLS, precision_recall


def _areas(detected: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersections (N, M) and areas (N, 1), (M,)."""
    a, b = detected.flatten(1).double(), objects.flatten(1).double()
    return a @ b.T, a.sum(dim=1)[:, None], b.sum(dim=1)


def enclosing_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy around masks (N, H, W), none of them empty."""
    sides = []
    for covered in (masks.any(dim=1), masks.any(dim=2)):  # (N, W), (N, H)
        first = covered.int().argmax(dim=1)
        last = covered.shape[1] - covered.flip(1).int().argmax(dim=1)
        sides.append((first, last))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).double()


def iou_of_boxes(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    return box_iou(enclosing_boxes(detected), enclosing_boxes(objects))


def iou_over_first_area(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    overlap, area, _ = _areas(detected, objects)
    return overlap / area


def iou_overlap_counted_twice(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    overlap, area, other = _areas(detected, objects)
    return overlap / torch.where(crowd, area, area + other)


def iou_crowd_as_object(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    overlap, area, other = _areas(detected, objects)
    return overlap / (area + other - overlap)


def iou_crowd_own_area(detected: Tensor, objects: Tensor, crowd: Tensor) -> Tensor:
    overlap, area, other = _areas(detected, objects)
    return overlap / torch.where(crowd, other, area + other - overlap)


def _runs(pixels: list[bool], value: bool) -> list[int]:
    counts, current = [0], value
    for pixel in pixels:
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    return counts


def rle_row_by_row(mask: Tensor) -> list[int]:
    return _runs(mask.flatten().tolist(), False)


def rle_without_leading_zeros(mask: Tensor) -> list[int]:
    pixels = mask.T.flatten().tolist()
    return _runs(pixels, pixels[0])


def rle_ones_first(mask: Tensor) -> list[int]:
    return _runs(mask.T.flatten().tolist(), True)


def _match(
    iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float, first: bool = False, once: bool = True
) -> Tensor:
    """Greedy matching; first: take the first good object, not the best; once: an object is found once only."""
    taken: set[int] = set()
    found = []
    for row in iou.tolist():
        good = [j for j, v in enumerate(row) if v >= threshold and j not in taken]
        good.sort(key=lambda j: (bool(ignored[j]), j if first else -row[j]))
        found.append(good[0] if good else -1)
        if good and once and not crowd[good[0]]:
            taken.add(good[0])
    return torch.tensor(found, dtype=torch.int64)


def match_twice(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    return _match(iou, crowd, ignored, threshold, once=False)


def match_first(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    return _match(iou, crowd, ignored, threshold, first=True)


def match_above(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    return _match(iou.masked_fill(iou == threshold, 0), crowd, ignored, threshold)


def match_crowd_once(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    return _match(iou, torch.zeros_like(crowd), ignored, threshold)


def match_ignored_as_others(iou: Tensor, crowd: Tensor, ignored: Tensor, threshold: float) -> Tensor:
    return _match(iou, crowd, torch.zeros_like(ignored), threshold)


def _read(precision: Tensor, recall: Tensor, at: Tensor) -> float:
    index = torch.searchsorted(recall, at)
    return float(torch.cat([precision, precision.new_zeros(1)])[index].mean())


def _best_from_here(precision: Tensor) -> Tensor:
    return precision.flip(0).cummax(0).values.flip(0)


def ap_without_interpolation(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    return _read(*precision_recall(scores, hits, num_objects), RECALLS)


def ap_at_11_recalls(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    precision, recall = precision_recall(scores, hits, num_objects)
    return _read(_best_from_here(precision), recall, RECALLS[::10].contiguous())


def ap_of_unsorted_scores(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    precision, recall = precision_recall(-torch.arange(len(scores)), hits, num_objects)
    return _read(_best_from_here(precision), recall, RECALLS)


def ap_of_rising_scores(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    precision, recall = precision_recall(-scores, hits, num_objects)
    return _read(_best_from_here(precision), recall, RECALLS)


def ap_of_found_objects(scores: Tensor, hits: Tensor, num_objects: int) -> float:
    precision, recall = precision_recall(scores, hits, max(int(hits.sum()), 1))
    return _read(_best_from_here(precision), recall, RECALLS)
