"""Exercises of lesson 3: coordinate maps, folding them into layer 1, aligned upsampling."""

from typing import Any

import torch
from torch import Generator

from condinst_edu import coordinates
from condinst_edu.layers.upsample import aligned_upsample
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform, whole


def relative_inputs(generator: Generator) -> tuple[Any, ...]:
    centers = uniform(generator, 3, 2) * torch.tensor([88, 56])
    return (7, 11), 8, centers, uniform(generator, 3, low=32, high=128)


def absolute_inputs(generator: Generator) -> tuple[Any, ...]:
    height, width = whole(generator, 2, low=3, high=7).tolist()
    return (height, width + 5), 8


def fold_inputs(generator: Generator) -> tuple[Any, ...]:
    weight, bias = uniform(generator, 3, 5, 2, low=-1), uniform(generator, 3, 5, low=-1)
    return weight, bias, uniform(generator, 3, 2, high=90), uniform(generator, 3, low=2, high=8)


def upsample_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 2, 5, 8, low=-1), 4


EXERCISES = [
    Exercise(
        id="03-relative-coordinates",
        lesson=3,
        title="Relative coordinates",
        difficulty=1,
        minutes=10,
        reference=coordinates.relative_coordinates,
        inputs=relative_inputs,
        deviations=deviations_of("condinst_edu.coordinates.relative_coordinates"),
        hints=(
            "(pixel - location) / scale, all in pixels; `locations` gives the pixels.",
            "The result is (N, 2, H, W), the x map first.",
        ),
        gradient=True,
    ),
    Exercise(
        id="03-absolute-coordinates",
        lesson=3,
        title="Absolute coordinates",
        difficulty=1,
        minutes=5,
        reference=coordinates.absolute_coordinates,
        inputs=absolute_inputs,
        deviations=deviations_of("condinst_edu.coordinates.absolute_coordinates"),
        hints=("Divide by half the extent in pixels (width * stride / 2, height * stride / 2), then subtract 1.",),
    ),
    Exercise(
        id="03-fold-coordinates",
        lesson=3,
        title="Relative coordinates without a coordinate tensor",
        difficulty=2,
        minutes=15,
        reference=references.fold_coordinates,
        inputs=fold_inputs,
        deviations=deviations_of("condinst_edu.teach.references.fold_coordinates"),
        hints=(
            "Multiply out W ((p - c) / s) + b and collect what stands at p.",
            "W c for N instances is `(W @ c[:, :, None]).squeeze(-1)`.",
        ),
        gradient=True,
    ),
    Exercise(
        id="03-aligned-upsample",
        lesson=3,
        title="Upsampling that stays on its pixels",
        difficulty=3,
        minutes=25,
        reference=aligned_upsample,
        inputs=upsample_inputs,
        deviations=deviations_of("condinst_edu.layers.upsample.aligned_upsample"),
        hints=(
            "Output k reads the input at (k - factor // 2) / factor, clamped to the map.",
            "Do rows, then columns: two neighbours each, weighted by how near they are.",
        ),
        gradient=True,
    ),
]
