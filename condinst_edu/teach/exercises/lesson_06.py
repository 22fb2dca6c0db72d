"""Exercises of lesson 6: rank-one weights, DR1Conv, mean embeddings, upsampling along strided convolutions."""

from typing import Any

import torch
from torch import Generator

from condinst_edu import dr1mask
from condinst_edu.layers.unified import mean_embeddings
from condinst_edu.layers.upsample import upsample_to
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform, whole


def rank1_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 4, 3, low=-1), uniform(generator, 3, low=-1), uniform(generator, 4, low=-1)


def dr1conv_inputs(generator: Generator) -> tuple[Any, ...]:
    x, a, b = (uniform(generator, 2, 3, 5, 8, low=-1) for _ in range(3))
    return x, uniform(generator, 3, 3, 3, 3, low=-1), a, b


def embedding_inputs(generator: Generator) -> tuple[Any, ...]:
    instance = torch.cat([torch.tensor([0, 0, 2, 3, 2, 2]), whole(generator, 3, high=4)])  # 4 is nobody's
    return uniform(generator, len(instance), 5, low=-1), instance, 5


def upsample_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 2, 4, 6, low=-1), (7, 11)


EXERCISES = [
    Exercise(
        id="06-rank-one",
        lesson=6,
        title="A weight matrix of rank-one factors",
        difficulty=1,
        minutes=5,
        reference=dr1mask.rank1_weight,
        inputs=rank1_inputs,
        deviations=deviations_of("condinst_edu.dr1mask.rank1_weight"),
        hints=("b a^T is an outer product: entry (i, j) is b_i a_j.", "The circle multiplies number by number."),
        gradient=True,
    ),
    Exercise(
        id="06-dr1conv",
        lesson=6,
        title="Dynamic rank-1 convolution",
        difficulty=1,
        minutes=10,
        reference=dr1mask.dr1conv,
        inputs=dr1conv_inputs,
        deviations=deviations_of("condinst_edu.dr1mask.dr1conv"),
        hints=(
            "Eq. 4: one of the two factors comes before the convolution, the other after it.",
            "`torch.nn.functional.conv2d` with a padding that keeps the size.",
        ),
        gradient=True,
    ),
    Exercise(
        id="06-mean-embeddings",
        lesson=6,
        title="One embedding for each object",
        difficulty=2,
        minutes=15,
        reference=mean_embeddings,
        inputs=embedding_inputs,
        deviations=deviations_of("condinst_edu.layers.unified.mean_embeddings"),
        hints=(
            "`zeros.index_add(0, instance, embeddings)` adds each row where it belongs.",
            "`torch.bincount(instance, minlength=count)` counts; divide by 1 where there is none.",
        ),
        gradient=True,
    ),
    Exercise(
        id="06-aligned-upsampling",
        lesson=6,
        title="Upsampling that undoes strided convolutions",
        difficulty=3,
        minutes=20,
        reference=upsample_to,
        inputs=upsample_inputs,
        deviations=deviations_of("condinst_edu.layers.upsample.upsample_to"),
        hints=(
            "Even outputs are inputs, odd ones lie between two of them, and beyond the last comes the last again.",
            "Make a map of twice the size, then cut it: which sides lose a row and a column?",
        ),
        gradient=True,
    ),
]
