"""Exercises of lesson 0: COCO's run lengths, mask IoU, matching, average precision."""

from typing import Any

import torch
from torch import Generator

from condinst_edu.teach import scoring
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, ellipses, uniform

HERE = "condinst_edu.teach.scoring."


def rle_inputs(generator: Generator) -> tuple[Any, ...]:
    mask = ellipses(generator, 1, (9, 14))[0]
    mask[0, 0] = generator.initial_seed() % 2 == 0  # of three masks in a row, some begin with a one, some with a zero
    return (mask,)


def iou_inputs(generator: Generator) -> tuple[Any, ...]:
    middles = uniform(generator, 3, 2, low=6, high=16)
    detected = ellipses(generator, 6, (19, 26), near=middles.repeat(2, 1))
    objects = ellipses(generator, 3, (19, 26), near=middles)
    return detected, objects, torch.tensor([False, True, False])


def match_inputs(generator: Generator) -> tuple[Any, ...]:
    crowd, ignored = torch.arange(9) == 1, (torch.arange(9) == 1) | (torch.arange(9) == 2)
    iou = uniform(generator, 15, 9).double()
    iou[0] = 0.3 * iou[0]
    iou[0, 4] = 0.5  # the threshold itself
    return iou, crowd, ignored, 0.5


def ap_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 30), uniform(generator, 30) < 0.6, 24


EXERCISES = [
    Exercise(
        id="00-rle",
        lesson=0,
        title="A mask as COCO's run lengths",
        difficulty=1,
        minutes=10,
        reference=scoring.rle_counts,
        inputs=rle_inputs,
        deviations=deviations_of(HERE + "rle_counts"),
        hints=(
            "Which order of the pixels does `mask.T.flatten()` give?",
            "Begin with a count of 0 and the value False; a pixel that differs from the value starts a new count.",
        ),
    ),
    Exercise(
        id="00-mask-iou",
        lesson=0,
        title="Intersection over union of masks",
        difficulty=1,
        minutes=10,
        reference=scoring.mask_iou,
        inputs=iou_inputs,
        deviations=deviations_of(HERE + "mask_iou"),
        hints=(
            "Flattened masks are rows of 0 and 1; as numbers (`.double()`), one matrix product counts what is shared.",
            "The union is area + area - overlap; where `crowd` is True it is the detection's own area.",
        ),
    ),
    Exercise(
        id="00-match",
        lesson=0,
        title="Which detection finds which object",
        difficulty=3,
        minutes=25,
        reference=scoring.match_objects,
        inputs=match_inputs,
        deviations=deviations_of(HERE + "match_objects"),
        hints=(
            "Go through the detections in order and keep a list of the objects that are still free.",
            "Of the objects that are not ignored, take the best from the threshold on; only then look at ignored ones.",
            "`max(candidates, key=lambda j: row[j], default=-1)` picks one; a crowd is never struck off the list.",
        ),
    ),
    Exercise(
        id="00-average-precision",
        lesson=0,
        title="Average precision from hits and scores",
        difficulty=2,
        minutes=20,
        reference=scoring.average_precision,
        inputs=ap_inputs,
        deviations=deviations_of(HERE + "average_precision"),
        hints=(
            "Sort by falling score; `cumsum` of the hits gives precision and recall after each detection.",
            "Interpolate: the precision at a recall is the best one at that recall or a higher one.",
            "Read it at 0, 0.01, ..., 1 and take the mean; beyond the last recall it is 0.",
        ),
    ),
]
