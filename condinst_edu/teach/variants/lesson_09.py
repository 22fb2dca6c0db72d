"""Variants of lesson 9: fusion, matches of segments, panoptic quality, the targets of things and stuff."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from condinst_edu.panoptic import Counts, Panoptic, Target, count_overlaps, fuse, match_segments, split_target
from condinst_edu.teach.references import counts_table, segment_counts


def _take(things: Target, index: Tensor) -> dict[str, Tensor]:
    return {name: things[name][index] for name in ("masks", "labels", "scores")}


def fuse_in_any_order(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    sure = things["scores"] >= min_score
    found = fuse(
        {**_take(things, sure), "scores": -torch.arange(int(sure.sum())).float()},
        stuff,
        -torch.inf,
        max_lost,
        min_stuff,
    )
    scores = things["scores"][sure].tolist()
    rows = [{**s, "score": scores[round(-s["score"])] if s["isthing"] else None} for s in found["segments_info"]]
    return {**found, "segments_info": rows}


def fuse_lets_rejected_block(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    things = _take(things, things["scores"].argsort(descending=True, stable=True))
    masks = things["masks"]
    before = masks.cumsum(dim=0) - masks.long() > 0  # (N, H, W)
    area, left = masks.flatten(1).sum(dim=1), (masks & ~before).flatten(1).sum(dim=1)
    keep = (left > 0) & (area - left <= max_lost * area)
    own = {**things, "masks": masks & ~before}
    return fuse(_take(own, keep), stuff, min_score, 1.0, min_stuff)


def fuse_keeps_all_things(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    return fuse(things, stuff, min_score, 1.0, min_stuff)


def fuse_keeps_small_stuff(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    return fuse(things, stuff, min_score, max_lost, 0)


def fuse_stuff_first(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    masks = things["masks"] & ~stuff["masks"].any(dim=0)
    return fuse({**things, "masks": masks}, stuff, min_score, max_lost, min_stuff)


def match_void_counts(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> Tensor:
    """Void becomes a segment of a category that nothing has: it stays in the unions, and forgives nothing."""
    strange = {"id": 2**30, "category_id": -1, "area": 0, "iscrowd": 1}
    void = truth["panoptic"] == 0
    filled = truth["panoptic"].masked_fill(void, 2**30)
    return segment_counts({"panoptic": filled, "segments_info": [*truth["segments_info"], strange]}, found, isthing)


def match_any_category(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> Tensor:
    category_of = {s["id"]: s["category_id"] for s in truth["segments_info"]}
    shared = count_overlaps(truth["panoptic"], found["panoptic"])
    rows = []
    for segment in found["segments_info"]:  # each takes the category of what it covers most of
        over = {t: n for (t, f), n in shared.items() if f == segment["id"] and t in category_of}
        rows.append(
            {**segment, "category_id": category_of[max(over, key=over.__getitem__)] if over else segment["category_id"]}
        )
    return segment_counts(truth, {**found, "segments_info": rows}, isthing)


def match_crowds_as_things(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> Tensor:
    rows = [{**s, "iscrowd": 0} for s in truth["segments_info"]]
    return segment_counts({**truth, "segments_info": rows}, found, isthing)


def match_forgives_nothing(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> Tensor:
    counts = match_segments(truth, found, isthing)
    for category in {s["category_id"] for s in found["segments_info"]}:
        row = counts.get(category, Counts())
        number = sum(s["category_id"] == category for s in found["segments_info"])
        counts[category] = replace(row, fp=number - row.tp)
    return counts_table(counts, isthing)


def quality_of_all_segments(iou: Tensor, tp: Tensor, fp: Tensor, fn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rq = tp / (tp + fp + fn)
    sq = iou / tp.clamp(min=1)
    return sq * rq, sq, rq


def quality_without_misses(iou: Tensor, tp: Tensor, fp: Tensor, fn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rq = tp / (tp + fp).clamp(min=1)
    sq = iou / tp.clamp(min=1)
    return sq * rq, sq, rq


def quality_mean_over_segments(iou: Tensor, tp: Tensor, fp: Tensor, fn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rq = tp / (tp + 0.5 * fp + 0.5 * fn)
    sq = iou / (tp + fp + fn)
    return sq * rq, sq, rq


def split_void_as_things(target: Target, num_things: int) -> tuple[dict[str, Tensor], Tensor]:
    things, stuff = split_target(target, num_things)
    return things, stuff.clamp(min=0)


def split_things_as_void(target: Target, num_things: int) -> tuple[dict[str, Tensor], Tensor]:
    things, stuff = split_target(target, num_things)
    return things, stuff.masked_fill(stuff == 0, -1)


def split_keeps_labels(target: Target, num_things: int) -> tuple[dict[str, Tensor], Tensor]:
    things, stuff = split_target(target, num_things)
    return things, torch.where(stuff > 0, stuff + num_things, stuff)


def split_stuff_from_zero(target: Target, num_things: int) -> tuple[dict[str, Tensor], Tensor]:
    things, stuff = split_target(target, num_things)
    return things, torch.where(stuff > 0, stuff - 1, stuff)
