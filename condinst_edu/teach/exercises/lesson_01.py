"""Exercises of lesson 1: locations, assignment, centre-ness, focal and GIoU loss, decoding."""

from typing import Any

import torch
from torch import Generator, Tensor

from condinst_edu import coordinates, fcos
from condinst_edu.layers.losses import giou_loss
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform, whole


def location_inputs(generator: Generator) -> tuple[Any, ...]:
    height, width = whole(generator, 2, low=2, high=6).tolist()
    return (height, width + 5), 8


def small_points() -> fcos.Points:
    """Three levels over an image of 96 x 128 pixels."""
    maps = [torch.zeros(1, 1, 96 // s, 128 // s) for s in (8, 16, 32)]
    return fcos.make_points(maps, (8, 16, 32), ((-1, 40), (40, 80), (80, torch.inf)))


def assign_inputs(generator: Generator) -> tuple[Any, ...]:
    """Two images with 9 boxes each, corners on whole multiples of 4, so that distances fall on the ends of ranges."""
    middle = torch.stack([whole(generator, 2, 9, low=5, high=n) for n in (27, 19)], dim=-1) * 4
    half = whole(generator, 2, 9, 2, low=3, high=14) * 4
    boxes = torch.cat([middle - half, middle + half], dim=-1).float()
    labels = whole(generator, 2, 9, low=1, high=4)
    labels[1, 8] = 0  # padding
    return small_points(), boxes, labels, middle.float() + whole(generator, 2, 9, 2, low=-3, high=4), 1.5


def assign_view(result: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Distances and index of background locations mean nothing: they are set to 0 and -1."""
    labels, distances, matched = result
    positive = labels > 0
    return {
        "labels": labels,
        "distances": torch.where(positive[..., None], distances, torch.zeros_like(distances)),
        "matched": torch.where(positive, matched, -torch.ones_like(matched)),
    }


def side_inputs(generator: Generator) -> tuple[Any, ...]:
    return (uniform(generator, 3, 5, 4, low=0.2, high=6),)


def focal_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 12, 5, low=-3, high=3), (uniform(generator, 12, 5) < 0.2).float()


def giou_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 9, 4, low=0.2, high=6), uniform(generator, 9, 4, low=0.2, high=6)


def decode_inputs(generator: Generator) -> tuple[Any, ...]:
    points = small_points()
    return points, uniform(generator, 2, len(points.xy), 4, high=4)


EXERCISES = [
    Exercise(
        id="01-locations",
        lesson=1,
        title="The pixels that the cells of a map stand for",
        difficulty=1,
        minutes=10,
        reference=coordinates.locations,
        inputs=location_inputs,
        deviations=deviations_of("condinst_edu.coordinates.locations"),
        hints=(
            "Cell (i, j) is the pixel (stride * j + stride // 2, stride * i + stride // 2).",
            '`torch.meshgrid(ys, xs, indexing="ij")` goes row by row; the result is float32.',
        ),
    ),
    Exercise(
        id="01-assign-targets",
        lesson=1,
        title="Which location answers for which object",
        difficulty=3,
        minutes=40,
        reference=fcos.assign_targets,
        inputs=assign_inputs,
        deviations=deviations_of("condinst_edu.fcos.assign_targets"),
        hints=(
            "Work on (B, L, M): every location of every image against every object of it.",
            "It has to be inside the box and within radius * stride of the centre along both axes, and its longest "
            "distance in its level's range, ends included.",
            "Areas that are not allowed become infinite: then `min` over the objects finds the smallest one.",
        ),
        view=assign_view,
    ),
    Exercise(
        id="01-centerness",
        lesson=1,
        title="Centre-ness",
        difficulty=1,
        minutes=5,
        reference=fcos.centerness,
        inputs=side_inputs,
        deviations=deviations_of("condinst_edu.fcos.centerness"),
        hints=("Left belongs to right, top to bottom.", "The smaller over the larger, multiplied, then the root."),
    ),
    Exercise(
        id="01-focal-loss",
        lesson=1,
        title="Focal loss",
        difficulty=2,
        minutes=15,
        reference=references.focal_loss,
        inputs=focal_inputs,
        deviations=deviations_of("condinst_edu.teach.references.focal_loss"),
        hints=(
            "p_t is the probability of what is true: p where the target is 1, 1 - p where it is 0.",
            "alpha weighs the targets of 1, 1 - alpha those of 0.",
        ),
        gradient=True,
        constants=(1,),
    ),
    Exercise(
        id="01-giou-loss",
        lesson=1,
        title="GIoU loss of boxes given as distances",
        difficulty=2,
        minutes=15,
        reference=giou_loss,
        inputs=giou_inputs,
        deviations=deviations_of("condinst_edu.layers.losses.giou_loss"),
        hints=(
            "Both boxes contain the location: the intersection has the smaller of each side, the hull the larger.",
            "A box is left + right wide and top + bottom high.",
        ),
        gradient=True,
        constants=(1,),
    ),
    Exercise(
        id="01-decode",
        lesson=1,
        title="Boxes from distances",
        difficulty=1,
        minutes=5,
        reference=fcos.decode,
        inputs=decode_inputs,
        deviations=deviations_of("condinst_edu.fcos.decode"),
        hints=("Distances are in strides: first make them pixels.", "x0 = x - left, y0 = y - top, x1 = x + right, ..."),
        gradient=True,
    ),
]
