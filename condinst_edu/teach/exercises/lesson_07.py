"""Exercises of lesson 7: AdaIN, Relative CoordConv, normalized focal loss, the greedy algorithm."""

from typing import Any

import torch
from torch import Generator, Tensor

from condinst_edu.coordinates import relative_coordconv
from condinst_edu.layers.losses import normalized_focal_loss
from condinst_edu.teach import references
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, ellipses, uniform, whole


def adain_inputs(generator: Generator) -> tuple[Any, ...]:
    x = uniform(generator, 2, 3, 4, 6, low=-1, high=2)
    return x, uniform(generator, 2, 3, low=0.5, high=2), uniform(generator, 2, 3, low=-1)


def adain_view(result: Any, args: tuple[Any, ...]) -> Any:
    """The result with a weight for each pixel: the plain sum of a normalised map has no gradient to compare."""
    if not isinstance(result, Tensor) or result.dim() < 2:
        return result
    height, width = result.shape[-2:]
    return result * (1 + (torch.arange(height)[:, None] + torch.arange(width)) / 8)


def coordconv_inputs(generator: Generator) -> tuple[Any, ...]:
    return (7, 11), 4, uniform(generator, 3, 2) * torch.tensor([44, 28]), 9.0


def nfl_inputs(generator: Generator) -> tuple[Any, ...]:
    return uniform(generator, 3, 5, 8, low=-3, high=3), whole(generator, 3, 5, 8, low=-1, high=2).float(), 2.0


def greedy_inputs(generator: Generator) -> tuple[Any, ...]:
    """Probabilities of masks around four places, so that they cover each other, and each one again, a pixel aside."""
    places = uniform(generator, 4, 2, low=5, high=15).repeat(3, 1)
    inside = ellipses(generator, 12, (18, 24), near=places)
    inside = torch.stack([inside, inside.roll(1, dims=2)], dim=1).flatten(0, 1)  # (24, H, W)
    return uniform(generator, 24, 18, 24, low=0.45, high=0.95) * inside + 0.05, 0.4, 0.5


EXERCISES = [
    Exercise(
        id="07-adain",
        lesson=7,
        title="Adaptive instance normalisation",
        difficulty=1,
        minutes=10,
        reference=references.adain,
        inputs=adain_inputs,
        deviations=deviations_of("condinst_edu.teach.references.adain"),
        hints=(
            "Mean and variance are those of one map of one instance: over dimensions 2 and 3.",
            "`keepdim=True` keeps them broadcastable; the variance is that of all pixels (unbiased=False).",
        ),
        gradient=True,
        view=adain_view,
    ),
    Exercise(
        id="07-relative-coordconv",
        lesson=7,
        title="Relative CoordConv",
        difficulty=1,
        minutes=10,
        reference=relative_coordconv,
        inputs=coordconv_inputs,
        deviations=deviations_of("condinst_edu.coordinates.relative_coordconv"),
        hints=(
            "Cell (i, j) is pixel (stride * j, stride * i); (pixel - point) / radius, x map first.",
            "What is farther than the radius is clipped: `clamp(-1, 1)`.",
        ),
        gradient=True,
    ),
    Exercise(
        id="07-normalized-focal-loss",
        lesson=7,
        title="Normalized focal loss",
        difficulty=2,
        minutes=20,
        reference=normalized_focal_loss,
        inputs=nfl_inputs,
        deviations=deviations_of("condinst_edu.layers.losses.normalized_focal_loss"),
        hints=(
            "p is the sigmoid on the object and one minus it off it; pixels of -1 have weight 0.",
            "P is a number for each mask, the sum of its weights; `detach()` holds it constant.",
        ),
        gradient=True,
        constants=(1,),
    ),
    Exercise(
        id="07-greedy",
        lesson=7,
        title="The greedy algorithm",
        difficulty=2,
        minutes=20,
        reference=references.greedy,
        inputs=greedy_inputs,
        deviations=deviations_of("condinst_edu.teach.references.greedy"),
        hints=(
            "Compare the pixels that a mask shares with all that is segmented so far with its own area.",
            "In the end: the highest probability among the kept ones, where that is above the threshold.",
        ),
    ),
]
