"""Exercises of lesson 9: the targets of things and stuff, fusion, matches of segments, panoptic quality."""

from typing import Any

import torch
from torch import Generator, Tensor

from condinst_edu.panoptic import fuse, split_target
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, ellipses, uniform, whole
from condinst_edu.teach.references import panoptic_numbers, segment_counts

HERE = "condinst_edu.panoptic."
ISTHING = {1: 1, 2: 1, 3: 0, 4: 0}


def disjoint(masks: Tensor) -> Tensor:
    """Masks (M, H, W) of which each keeps what none before it covers."""
    return masks & (masks.cumsum(dim=0) == 1)


def split_inputs(generator: Generator) -> tuple[Any, ...]:
    """Eight segments of an image, of which 1 to 3 are things; not every pixel has one."""
    masks = disjoint(ellipses(generator, 8, (23, 34)))
    labels = torch.cat([whole(generator, 4, low=1, high=4), whole(generator, 4, low=4, high=8)])
    order = torch.randperm(8, generator=generator)
    return {"masks": masks[order], "labels": labels[order], "boxes": uniform(generator, 8, 4)}, 3


def split_view(result: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    things, stuff = result
    return {**{f"{name} of the things": things[name] for name in ("masks", "labels", "boxes")}, "stuff": stuff}


def fuse_inputs(generator: Generator) -> tuple[Any, ...]:
    """Overlapping instances in three heaps, some of them unsure, on three bands of stuff, one of them narrow."""
    size, count = (28, 41), 21
    scores = uniform(generator, count, low=0.3)
    middles = uniform(generator, 3, 2, low=6, high=24).repeat(7, 1)
    masks = ellipses(generator, count, size, near=middles)
    things = {"masks": masks, "labels": whole(generator, count, low=1, high=4)}
    band = torch.bucketize(torch.arange(41), torch.tensor([1, 22])).expand(size)
    stuff = {"masks": band == torch.arange(3)[:, None, None], "labels": torch.tensor([4, 6, 7])}
    return {**things, "scores": scores}, stuff, 0.45, 0.4, 60


def fuse_view(result: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Which pixels belong together, whatever the ids, and each segment's category and area."""
    result = dict(result)
    ids, rows = result["panoptic"], result["segments_info"]
    order = torch.zeros_like(ids)
    for k, row in enumerate(rows, start=1):
        order[ids == row["id"]] = k
    facts = torch.tensor([[row["category_id"], row["isthing"], row["area"]] for row in rows]).reshape(-1, 3)
    return {"the map, segments in order": order, "category, isthing and area of each": facts.long()}


def match_inputs(generator: Generator) -> tuple[Any, ...]:
    """A ground truth with void and a crowd, and what was found: shifted, with wrong categories, with inventions."""
    masks = disjoint(ellipses(generator, 7, (26, 37)))
    ids = (masks * torch.arange(1, 8)[:, None, None]).sum(dim=0)
    found = ids.roll((1, -1), (0, 1))
    y, x = (int(whole(generator, 1, low=0, high=side)) for side in (16, 24))
    found[y : y + 6, x : x + 8] = 9
    categories = whole(generator, 10, low=1, high=5).tolist()
    swapped = [1 + c % 4 if k % 4 == 3 else c for k, c in enumerate(categories)]
    images: list[Any] = []
    for panoptic, kinds in ((ids, categories), (found, swapped)):
        areas = panoptic.flatten().bincount(minlength=10).tolist()
        rows = [{"id": i, "category_id": kinds[i], "area": areas[i]} for i in range(1, 10) if areas[i]]
        images.append({"panoptic": panoptic, "segments_info": rows})
    for row in images[0]["segments_info"]:
        row["iscrowd"] = int(row["id"] in (2, 5))
    return images[0], images[1], ISTHING


def quality_inputs(generator: Generator) -> tuple[Any, ...]:
    """Counts of five classes; the last was never found."""
    tp = whole(generator, 5, low=1, high=9)
    tp[4] = 0
    iou = tp * uniform(generator, 5, low=0.55)
    return iou, tp, whole(generator, 5, low=1, high=6), whole(generator, 5, low=1, high=6)


EXERCISES = [
    Exercise(
        id="09-split-target",
        lesson=9,
        title="Things to one teacher, stuff to the other",
        difficulty=1,
        minutes=10,
        reference=split_target,
        inputs=split_inputs,
        deviations=deviations_of(HERE + "split_target"),
        hints=(
            "Begin with a map full of -1 and write into it, one mask after the other.",
            "A thing's pixels become 0; stuff with the label k becomes k - num_things.",
        ),
        view=split_view,
    ),
    Exercise(
        id="09-fuse",
        lesson=9,
        title="One picture out of many masks",
        difficulty=2,
        minutes=20,
        reference=fuse,
        inputs=fuse_inputs,
        deviations=deviations_of(HERE + "fuse"),
        hints=(
            "Go by falling score; what an instance can still have is its mask where the map is 0.",
            "One that is left out takes nothing: those after it find its pixels free.",
        ),
        view=fuse_view,
    ),
    Exercise(
        id="09-segment-counts",
        lesson=9,
        title="Found, missed, made up",
        difficulty=3,
        minutes=30,
        reference=segment_counts,
        inputs=match_inputs,
        deviations=deviations_of("condinst_edu.teach.references.segment_counts"),
        hints=(
            "For each pair of a true and a found segment of one category: pixels shared, over pixels of either; of the "
            "latter, take away those that were found on true void.",
            "Crowds are never matched or missed. A found segment without a match is no mistake if more than half of "
            "it lies on void and on a crowd of its category.",
        ),
    ),
    Exercise(
        id="09-quality",
        lesson=9,
        title="Three numbers from four",
        difficulty=1,
        minutes=5,
        reference=panoptic_numbers,
        inputs=quality_inputs,
        deviations=deviations_of("condinst_edu.teach.references.panoptic_numbers"),
        hints=("RQ is the F1 score: mistakes of both kinds count by half.", "SQ is a mean over the matches alone."),
    ),
]
