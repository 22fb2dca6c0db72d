"""Exercises of lesson 5: the blender, cropping the bases, factored attention, pasting masks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from condinst_edu import blendmask
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform


def merge_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 3, 4, 10, 10, low=-2, high=2), uniform(generator, 3, 4, 3, 3, low=-2, high=2)


def boxes_within(generator: Generator, count: int, width: float, height: float) -> Tensor:
    """Boxes (count, 4) of at least a third of each side."""
    first = uniform(generator, count, 2, high=0.4)
    last = first + uniform(generator, count, 2, low=0.35, high=0.55)
    return torch.cat([first, last], dim=1) * torch.tensor([width, height]).repeat(2)


def crop_inputs(generator: Generator) -> tuple[Any, ...]:
    bases = uniform(generator, 2, 3, 9, 14, low=-1)
    boxes = [boxes_within(generator, count, 14 * 4, 9 * 4) + 1 for count in (2, 1)]
    return bases, boxes, 4, 5


def factored_inputs(generator: Generator) -> tuple[Any, ...]:
    u, v = uniform(generator, 4, 3, 6, low=-1), uniform(generator, 4, 3, 6, low=-1)
    return u, v, uniform(generator, 2, 4, 3, low=-1)


def paste_inputs(generator: Generator) -> tuple[Any, ...]:
    coarse = uniform(generator, 3, 1, 3, 3)
    scores = (1.6 * F.interpolate(coarse, (7, 7), mode="bilinear")[:, 0] - 0.3).clamp(0, 1)
    return scores, boxes_within(generator, 3, 61, 43), (43, 61)


HERE = "condinst_edu.blendmask."

EXERCISES = [
    Exercise(
        id="05-merge-bases",
        lesson=5,
        title="The blender's sum",
        difficulty=1,
        minutes=10,
        reference=blendmask.merge_bases,
        inputs=merge_inputs,
        deviations=deviations_of(HERE + "merge_bases"),
        hints=(
            "`F.interpolate(attention, crops.shape[-2:], mode='bilinear')` gives every cell its weights.",
            "The weights of one cell sum to 1 over the bases: softmax over axis 1, after the resizing.",
        ),
        gradient=True,
    ),
    Exercise(
        id="05-crop-bases",
        lesson=5,
        title="Cutting a box out of the bases",
        difficulty=2,
        minutes=20,
        reference=blendmask.crop_bases,
        inputs=crop_inputs,
        deviations=deviations_of(HERE + "crop_bases"),
        hints=(
            "Cell j of the crop reads x = x0 + (j + 1/2) / size * (x1 - x0), in pixels; the same for y.",
            "`F.grid_sample(..., padding_mode='border', align_corners=False)` wants x from -1 to 1 over the whole map, "
            "whose width in pixels is W * stride.",
        ),
        gradient=True,
        constants=(1,),
    ),
    Exercise(
        id="05-factored-attention",
        lesson=5,
        title="Attention from a few numbers",
        difficulty=1,
        minutes=10,
        reference=references.factored_attention,
        inputs=factored_inputs,
        deviations=deviations_of("condinst_edu.teach.references.factored_attention"),
        hints=(
            "For one base: the sum over r of factors[r] * outer(u[r], v[r]).",
            "`torch.einsum` does it for all instances and bases at once.",
        ),
        gradient=True,
    ),
    Exercise(
        id="05-paste-masks",
        lesson=5,
        title="Back into the image",
        difficulty=3,
        minutes=25,
        reference=blendmask.paste_masks,
        inputs=paste_inputs,
        deviations=deviations_of(HERE + "paste_masks"),
        hints=(
            "Work backwards: pixel x has its centre at x + 1/2, that is (x + 1/2 - x0) / (x1 - x0) of the box's width.",
            "`F.grid_sample` with its zero padding reads the scores there, and 0 outside the box.",
        ),
    ),
]
