"""What an exercise is, and what its inputs are drawn with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Exercise:
    """A function to write, and all that is needed to judge it.

    difficulty: 1 to 3; minutes: to solve it; reference: the right function; inputs: draws its arguments (random, not
    square); deviations: names of the wrong variants that are recognised; gradient: whether the answer is trained
    through, so that its gradient is compared as well; constants: positions of arguments, such as a loss's targets,
    whose own gradient does not matter; view: the part of a result that counts, as tensors or numbers.
    """

    id: str
    lesson: int
    title: str
    difficulty: int
    minutes: int
    reference: Callable[..., Any]
    inputs: Callable[[Generator], tuple[Any, ...]]
    deviations: tuple[str, ...]
    hints: tuple[str, ...]
    gradient: bool = False
    constants: tuple[int, ...] = ()
    view: Callable[[Any, tuple[Any, ...]], Any] = lambda result, args: result


def uniform(generator: Generator, *shape: int, low: float = 0, high: float = 1) -> Tensor:
    """Random numbers between low and high, float32."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def whole(generator: Generator, *shape: int, low: int = 0, high: int = 2) -> Tensor:
    """Random whole numbers from low to high - 1, int64."""
    return torch.randint(low, high, shape, generator=generator)


def ellipses(generator: Generator, count: int, size: tuple[int, int], near: Tensor | None = None) -> Tensor:
    """Masks (count, *size) bool of ellipses, none empty; near: (count, 2), middles (x, y) to stay close to."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middle = uniform(generator, count, 2) * torch.tensor([width - 1, height - 1])
    if near is not None:
        middle = near + uniform(generator, count, 2, low=-3, high=3)
    radii = uniform(generator, count, 2, low=2.5, high=min(size) / 3)
    dx = (x - middle[:, 0, None, None].round()) / radii[:, 0, None, None]
    dy = (y - middle[:, 1, None, None].round()) / radii[:, 1, None, None]
    return dx**2 + dy**2 <= 1
