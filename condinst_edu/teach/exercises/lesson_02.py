"""Exercises of lesson 2: counting, unpacking and running the dynamic mask heads; dice loss."""

import itertools
from typing import Any

from torch import Generator

from condinst_edu.layers.losses import dice_loss
from condinst_edu.mask_head import run_layers, split_parameters
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform, whole


def count_inputs(generator: Generator) -> tuple[Any, ...]:
    return ((*whole(generator, 3, low=3, high=12).tolist(), 1),)


def split_inputs(generator: Generator) -> tuple[Any, ...]:
    channels = (6, 4, 3, 1)
    return uniform(generator, 3, references.count_parameters(channels), low=-1), channels


def layer_inputs(generator: Generator) -> tuple[Any, ...]:
    pairs = list(itertools.pairwise((6, 4, 4, 1)))
    shared = uniform(generator, 6, 35, low=-1)  # a map of 5 x 7, flattened
    return shared, [uniform(generator, 3, o, i, low=-1) for i, o in pairs], [uniform(generator, 3, o) for _, o in pairs]


def dice_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 4, 7, 11), uniform(generator, 4, 7, 11) < 0.3


EXERCISES = [
    Exercise(
        id="02-count-parameters",
        lesson=2,
        title="How many numbers the controller predicts",
        difficulty=1,
        minutes=5,
        reference=references.count_parameters,
        inputs=count_inputs,
        deviations=deviations_of("condinst_edu.teach.references.count_parameters"),
        hints=("A 1x1 convolution has in * out weights and out biases.", "(10, 8, 8, 1) gives 169."),
    ),
    Exercise(
        id="02-split-parameters",
        lesson=2,
        title="Filters out of the controller's output",
        difficulty=2,
        minutes=15,
        reference=split_parameters,
        inputs=split_inputs,
        deviations=deviations_of("condinst_edu.mask_head.split_parameters"),
        hints=(
            "First all weights, layer by layer, then all biases: `theta.split(sizes, dim=-1)`.",
            "A weight is (N, out, in), row by row.",
        ),
        gradient=True,
    ),
    Exercise(
        id="02-dynamic-layers",
        lesson=2,
        title="Every instance's own network on shared maps",
        difficulty=2,
        minutes=15,
        reference=run_layers,
        inputs=layer_inputs,
        deviations=deviations_of("condinst_edu.mask_head.run_layers"),
        hints=(
            "A 1x1 convolution is a matrix product over channels: (N, out, in) @ (N, in, L).",
            "ReLU after all layers but the last; the result is (N, L).",
        ),
        gradient=True,
    ),
    Exercise(
        id="02-dice-loss",
        lesson=2,
        title="Dice loss",
        difficulty=1,
        minutes=10,
        reference=dice_loss,
        inputs=dice_inputs,
        deviations=deviations_of("condinst_edu.layers.losses.dice_loss"),
        hints=("One number per mask: sum over pixels, not over masks.", "The denominator has squares."),
        gradient=True,
    ),
]
