"""Exercises of lesson 8: CoordConv's maps, decoupled masks, NMS among neighbours, cells of an object, Matrix NMS."""

from typing import Any

import torch
from torch import Generator

from condinst_edu import coordinates, solo
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, ellipses, uniform, whole


def coordconv_inputs(generator: Generator) -> tuple[Any, ...]:
    height, width = whole(generator, 2, low=3, high=7).tolist()
    return ((height, width + 5),)


def decoupled_inputs(generator: Generator) -> tuple[Any, ...]:
    columns, rows = (uniform(generator, 5, 6, 9, low=-3, high=3) for _ in range(2))
    return columns, rows, whole(generator, 7, high=25)


def points_inputs(generator: Generator) -> tuple[Any, ...]:
    return (uniform(generator, 2, 3, 7, 9),)


def cells_inputs(generator: Generator) -> tuple[Any, ...]:
    """Objects off the middle of their boxes, some with a centre region of several cells."""
    corner = uniform(generator, 8, 2) * torch.tensor([120, 60])
    extent = uniform(generator, 8, 2, low=8, high=90)
    extent[:2] = torch.tensor([[170.0, 60.0], [40.0, 90.0]])  # of more cells than count
    boxes = torch.cat([corner, corner + extent], dim=1)
    centers = corner + extent * uniform(generator, 8, 2, low=0.3, high=0.7)
    return centers, boxes, (160, 256), 24, 0.5


def matrix_inputs(generator: Generator) -> tuple[Any, ...]:
    middle = torch.tensor([[12.0, 10.0], [30.0, 14.0]]).repeat(5, 1)  # two heaps
    masks = ellipses(generator, 10, (24, 40), middle)
    scores = uniform(generator, 10, low=0.1).sort(descending=True).values
    return masks, scores, whole(generator, 10, low=1, high=3)


EXERCISES = [
    Exercise(
        id="08-coordconv",
        lesson=8,
        title="CoordConv's maps",
        difficulty=1,
        minutes=5,
        reference=coordinates.coordconv,
        inputs=coordconv_inputs,
        deviations=deviations_of("condinst_edu.coordinates.coordconv"),
        hints=("`torch.linspace(-1, 1, n)` gives n numbers with -1 the first and 1 the last.",),
    ),
    Exercise(
        id="08-decoupled-masks",
        lesson=8,
        title="The mask of a cell from a column and a row",
        difficulty=1,
        minutes=10,
        reference=references.decoupled_masks,
        inputs=decoupled_inputs,
        deviations=deviations_of("condinst_edu.teach.references.decoupled_masks"),
        hints=("k = i * S + j: i = k // S is the row, j = k % S the column.", "Sigmoid first, then the product."),
        gradient=True,
    ),
    Exercise(
        id="08-points-nms",
        lesson=8,
        title="One cell of several neighbours",
        difficulty=2,
        minutes=15,
        reference=solo.points_nms,
        inputs=points_inputs,
        deviations=deviations_of("condinst_edu.solo.points_nms"),
        hints=(
            "A shifted copy has each cell's neighbour in the cell's place: `F.pad(scores, (1, 0))[..., :-1]`.",
            "`F.max_pool2d(scores, 2, stride=1, padding=1)` has one row and one column too many: which?",
        ),
    ),
    Exercise(
        id="08-claimed-cells",
        lesson=8,
        title="The cells that an object claims",
        difficulty=2,
        minutes=20,
        reference=solo.claimed_cells,
        inputs=cells_inputs,
        deviations=deviations_of("condinst_edu.solo.claimed_cells"),
        hints=(
            "`grid_cells` gives the cells (j, i) of the centre region's two corners and of its centre.",
            "Compare `torch.arange(grid)` with the first and the last cell, once for columns and once for rows.",
        ),
    ),
    Exercise(
        id="08-matrix-nms",
        lesson=8,
        title="Matrix NMS",
        difficulty=3,
        minutes=30,
        reference=solo.matrix_nms,
        inputs=matrix_inputs,
        deviations=deviations_of("condinst_edu.solo.matrix_nms"),
        hints=(
            "`.triu(diagonal=1)` leaves each pair's entry where the row is the better mask.",
            "c_i is the largest entry in column i; the decay of column j is the smallest of its ratios.",
        ),
    ),
]
