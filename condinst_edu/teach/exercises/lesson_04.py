"""Exercises of lesson 4: which locations train masks, mask NMS, the semantic map."""

from typing import Any

import torch
from torch import Generator, Tensor

from condinst_edu.condinst import mask_nms, sample_locations, semantic_map
from condinst_edu.fcos import Assignment, Outputs
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, ellipses, uniform, whole

HERE = "condinst_edu.condinst."


def sample_inputs(generator: Generator) -> tuple[Any, ...]:
    """Two images with 40 locations, about half of them positive, of which 7 are sampled."""
    logits, centerness = uniform(generator, 2, 40, 3, low=-2, high=2), uniform(generator, 2, 40, low=-2, high=2)
    labels = whole(generator, 2, 40, low=1, high=4) * whole(generator, 2, 40)
    outputs = Outputs(logits, torch.zeros(2, 40, 4), centerness, torch.zeros(2, 40, 0))
    return outputs, Assignment(labels, torch.zeros(2, 40, 4), torch.zeros_like(labels)), 7


def sample_view(result: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Which locations are sampled, in any order; those that are not positive do not count."""
    index, positive = result
    chosen = torch.zeros_like(args[1].labels).scatter(1, index, positive.long())
    return {"positive": positive.sort(dim=1, descending=True).values, "chosen locations": chosen}


def nms_inputs(generator: Generator) -> tuple[Any, ...]:
    middles = uniform(generator, 4, 2, low=6, high=16).repeat(5, 1)
    masks = ellipses(generator, 20, (19, 26), near=middles)
    return masks, uniform(generator, 20), whole(generator, 20, low=1, high=3), 0.4


def semantic_inputs(generator: Generator) -> tuple[Any, ...]:
    return ellipses(generator, 10, (36, 52)), whole(generator, 10, low=1, high=6), 4


EXERCISES = [
    Exercise(
        id="04-sample-locations",
        lesson=4,
        title="Which locations train their masks",
        difficulty=2,
        minutes=15,
        reference=sample_locations,
        inputs=sample_inputs,
        deviations=deviations_of(HERE + "sample_locations"),
        hints=(
            "The score is the probability of the object's own class times the centre-ness, after both sigmoids.",
            "`gather` picks the logit of class label - 1; give background locations a score below all others.",
        ),
        view=sample_view,
    ),
    Exercise(
        id="04-mask-nms",
        lesson=4,
        title="Non-maximum suppression by masks",
        difficulty=3,
        minutes=20,
        reference=mask_nms,
        inputs=nms_inputs,
        deviations=deviations_of(HERE + "mask_nms"),
        hints=(
            "Go by falling score; keep a mask unless one that was kept, of its class, overlaps it too much.",
            "Return the kept indices, by falling score.",
        ),
    ),
    Exercise(
        id="04-semantic-map",
        lesson=4,
        title="One label for every cell",
        difficulty=2,
        minutes=10,
        reference=semantic_map,
        inputs=semantic_inputs,
        deviations=deviations_of(HERE + "semantic_map"),
        hints=(
            "Cells read the pixels stride // 2, stride + stride // 2, ...",
            "Paint from the largest to the smallest mask (full-size area), or take the minimum of areas.",
        ),
    ),
]
