"""Exercises of lesson 10: a process's share of a batch, what it divides its losses by, the learning rate."""

from typing import Any

import torch
from torch import Generator

from condinst_edu.datasets.batching import batch_indices
from condinst_edu.teach.deviations import deviations_of
from condinst_edu.teach.exercises.base import Exercise, uniform, whole
from condinst_edu.teach.references import learning_rates, share_normalisers

HERE = "condinst_edu.teach.references."


def share_inputs(generator: Generator) -> tuple[Any, ...]:
    """The last of two or three processes, in a batch that straddles two epochs, neither of them the first."""
    world, each = int(whole(generator, low=2, high=4)), int(whole(generator, low=4, high=7))
    batch_size, length = world * each, int(whole(generator, low=31, high=60))
    iteration = 2 * length // batch_size  # the batch that the third epoch begins in
    return iteration, batch_size, length, int(whole(generator, low=1, high=100)), world - 1, world


def normaliser_inputs(generator: Generator) -> tuple[Any, ...]:
    """Counts of three losses in five processes, one of which has nothing: many, fewer than `least` in all, none."""
    counts = uniform(generator, 3, 5, low=4, high=30).round() * torch.tensor([[1.0], [0.03], [0]])
    counts[:, int(whole(generator, low=0, high=5))] = 0
    return counts, float(whole(generator, low=8, high=20))


def rate_inputs(generator: Generator) -> tuple[Any, ...]:
    iterations = int(whole(generator, low=50, high=80))
    milestones = (int(0.6 * iterations), int(0.85 * iterations))
    rate, factor = (float(uniform(generator, low=low, high=high)) for low, high in ((0.005, 0.02), (0.01, 0.2)))
    batch_size = (2, 4, 8, 32, 64)[int(whole(generator, low=0, high=5))]
    return rate, iterations, int(whole(generator, low=8, high=20)), factor, milestones, batch_size


EXERCISES = [
    Exercise(
        id="10-share",
        lesson=10,
        title="A process's share of a batch",
        difficulty=2,
        minutes=15,
        reference=batch_indices,
        inputs=share_inputs,
        deviations=deviations_of("condinst_edu.datasets.batching.batch_indices"),
        hints=(
            "Number all visits of the run from 0: iteration i begins at i * batch_size. Which of these are yours?",
            "Visit p belongs to epoch p // length, and is number p % length of that epoch's order.",
        ),
    ),
    Exercise(
        id="10-normalisers",
        lesson=10,
        title="What each process divides by",
        difficulty=2,
        minutes=10,
        reference=share_normalisers,
        inputs=normaliser_inputs,
        deviations=deviations_of(HERE + "share_normalisers"),
        hints=(
            "The mean over processes of S_r / d has to be the sum of all S_r over the total. What is d?",
            "`least` is about the total: a single process may well have no positive.",
        ),
    ),
    Exercise(
        id="10-rates",
        lesson=10,
        title="The learning rate, iteration by iteration",
        difficulty=2,
        minutes=15,
        reference=learning_rates,
        inputs=rate_inputs,
        deviations=deviations_of(HERE + "learning_rates"),
        hints=(
            "How many milestones have been reached at iteration i? The rate is divided by 10 so many times.",
            "In the warm-up the share rises from `factor` at iteration 0 to 1 at iteration `warmup`.",
        ),
    ),
]
