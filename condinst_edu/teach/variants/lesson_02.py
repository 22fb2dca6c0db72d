"""Variants of lesson 2: the dynamic mask head's parameters and layers, dice loss."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from condinst_edu.mask_head import Layers, split_parameters


def count_without_biases(channels: Sequence[int]) -> int:
    return sum(o * i for i, o in itertools.pairwise(channels))


def count_biases_of_inputs(channels: Sequence[int]) -> int:
    return sum(i * (o + 1) for i, o in itertools.pairwise(channels))


def count_3x3(channels: Sequence[int]) -> int:
    return sum(o * (9 * i + 1) for i, o in itertools.pairwise(channels))


def split_biases_first(theta: Tensor, channels: Sequence[int]) -> Layers:
    count = sum(channels[1:])
    return split_parameters(torch.cat([theta[:, count:], theta[:, :count]], dim=1), channels)


def split_by_columns(theta: Tensor, channels: Sequence[int]) -> Layers:
    weights, biases = split_parameters(theta, channels)
    return [w.reshape(len(w), w.shape[2], w.shape[1]).mT for w in weights], biases


def split_features_first(theta: Tensor, channels: Sequence[int]) -> Layers:
    weights, biases = split_parameters(theta, channels)
    return [weights[0].roll(2, dims=2), *weights[1:]], biases


def split_layer_by_layer(theta: Tensor, channels: Sequence[int]) -> Layers:
    weights, biases, start = [], [], 0
    for i, o in itertools.pairwise(channels):
        weights.append(theta[:, start : start + i * o].unflatten(1, (o, i)))
        biases.append(theta[:, start + i * o : start + i * o + o])
        start += i * o + o
    return weights, biases


def _layers(
    shared: Tensor, weights: list[Tensor], biases: list[Tensor], relu: Sequence[bool], bias: bool = True
) -> Tensor:
    x = shared.expand(len(weights[0]), *shared.shape)  # (N, inputs, L)
    for w, b, active in zip(weights, biases, relu, strict=True):
        x = w @ x + (b[..., None] if bias else 0)
        x = x.relu() if active else x
    return x.squeeze(1)


def _usual(weights: list[Tensor]) -> list[bool]:
    return [True] * (len(weights) - 1) + [False]


def dynamic_without_relu(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return _layers(shared, weights, biases, [False] * len(weights))


def dynamic_relu_last(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return _layers(shared, weights, biases, [True] * len(weights))


def dynamic_without_biases(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return _layers(shared, weights, biases, _usual(weights), bias=False)


def dynamic_first_filters(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    n = len(weights[0])
    first = [[x[:1].expand(n, *x.shape[1:]) for x in group] for group in (weights, biases)]
    return _layers(shared, first[0], first[1], _usual(weights))


def dynamic_wrong_groups(shared: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    n, width, _ = weights[0].shape
    x = weights[0] @ shared + biases[0][..., None]  # (N, width, L)
    x = x.flatten(0, 1).unflatten(0, (width, n)).transpose(0, 1)  # cut as if the channels came before the instances
    return _layers_from(x.relu(), weights[1:], biases[1:])


def _layers_from(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = w @ x + b[..., None]
        x = x.relu() if i < len(weights) - 1 else x
    return x.squeeze(1)


def _dice(scores: Tensor, targets: Tensor, smooth: float, power: int = 2) -> Tensor:
    scores, targets = scores.flatten(1), targets.flatten(1).to(scores.dtype)
    total = (scores**power).sum(1) + targets.sum(1)
    return 1 - (2 * (scores * targets).sum(1) + smooth) / (total + smooth)


def dice_without_squares(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return _dice(scores, targets, eps, power=1)


def dice_of_the_batch(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return _dice(scores[None], targets[None], eps).expand(len(scores))


def dice_one_number(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return _dice(scores[None], targets[None], eps)[0]


def dice_not_a_loss(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return 1 - _dice(scores, targets, eps)


def dice_smoothed(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return _dice(scores, targets, 1)


def dice_without_two(scores: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    return (1 + _dice(scores, targets, eps)) / 2
