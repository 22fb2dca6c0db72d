"""Variants of lesson 10: a process's share of a batch, what it divides its losses by, the learning rate."""

from collections.abc import Sequence

from torch import Tensor

from condinst_edu.datasets.batching import batch_indices
from condinst_edu.teach.references import learning_rates


def share_of_nobody(
    iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    return batch_indices(iteration, batch_size // world, length, seed)


def share_per_process(
    iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    return batch_indices(iteration, batch_size * world, length, seed, rank, world)


def share_of_own_order(
    iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    return batch_indices(iteration, batch_size, length, seed + rank, rank, world)


def share_of_one_epoch(
    iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
) -> list[int]:
    first_epoch = batch_indices(0, length, length, seed)
    positions = range(rank * batch_size // world, (rank + 1) * batch_size // world)
    return [first_epoch[(iteration * batch_size + p) % length] for p in positions]


def share_in_turns(iteration: int, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1) -> list[int]:
    return batch_indices(iteration, batch_size, length, seed)[rank::world]


def divide_by_own(counts: Tensor, least: float) -> Tensor:
    return counts.clamp(min=least)


def divide_by_total(counts: Tensor, least: float) -> Tensor:
    return counts.sum(dim=1, keepdim=True).clamp(min=least).expand(counts.shape)


def divide_by_clamped(counts: Tensor, least: float) -> Tensor:
    return counts.clamp(min=least).mean(dim=1, keepdim=True).expand(counts.shape)


def divide_by_mean_at_least(counts: Tensor, least: float) -> Tensor:
    return counts.mean(dim=1, keepdim=True).clamp(min=least).expand(counts.shape)


def rates_without_warmup(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return learning_rates(lr, iterations, 0, factor, milestones, batch_size)


def rates_from_zero(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return learning_rates(lr, iterations, warmup, 0.0, milestones, batch_size)


def rates_one_step(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return learning_rates(lr, iterations, warmup, factor, milestones[:1], batch_size)


def rates_one_late(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return learning_rates(lr, iterations, warmup, factor, [m + 1 for m in milestones], batch_size)


def rates_not_scaled(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return learning_rates(lr, iterations, warmup, factor, milestones, 16)


def rates_by_root(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    return (batch_size / 16) ** -0.5 * learning_rates(lr, iterations, warmup, factor, milestones, batch_size)
