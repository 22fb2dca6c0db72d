"""What lesson 10 measures with: recipes side by side, the loader's speed, types of layers, gradients, a profile."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from condinst_edu.bench_loader import MASK_STRIDE, visit_all, write_synthetic
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.engine.checkpoint import plain
from condinst_edu.engine.recipe import Recipe


class Operation(NamedTuple):
    """All calls of one operation in a profile; milliseconds: its own, without those of operations that it calls."""

    name: str
    milliseconds: float
    calls: int


def compare_recipes(first: Recipe, second: Recipe) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Fields that differ, with both values as text, and names of those that do not; a model's arguments are fields."""
    rows = []
    for recipe in (first, second):
        fields = plain(recipe)
        arguments = fields.pop("model_args")
        rows.append(fields | {f"model: {name}": value for name, value in arguments.items()})
    a, b = ({name: str(row.get(name, "(default)")) for name in rows[0] | rows[1]} for row in rows)
    return [(name, a[name], b[name]) for name in a if a[name] != b[name]], [name for name in a if a[name] == b[name]]


def loader_rate(recipe: Recipe, folder: Path, images: int = 30) -> float:
    """Training images a second that one process reads and transforms as the recipe says.

    The images are drawn into `folder`: JPEG files of 640x480 with 7 polygons each on average, as COCO has them.
    """
    write_synthetic(folder, images)
    dataset = CocoDataset(folder / "images", folder / "instances.json", outlines=True)
    transform = TrainTransform(recipe.short_sides, recipe.max_size, recipe.flip, mask_stride=MASK_STRIDE)
    begin = time.perf_counter()
    visit_all(dataset, transform)
    return images / (time.perf_counter() - begin)


def layer_types(model: nn.Module, function: Callable[[], object]) -> dict[str, torch.dtype]:
    """The type that each kind of layer gives while the function runs the model: {"Conv2d": torch.float32, ...}."""
    found: dict[str, torch.dtype] = {}

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        found[type(module).__name__] = output.dtype

    hooks = [module.register_forward_hook(note) for module in model.modules() if not list(module.children())]
    try:
        function()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def gradient_sizes(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Absolute values (N,) of all gradients that are not 0, at the outputs of the convolutions."""
    found: list[Tensor] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: found.append(gradient[gradient != 0].abs()))

    hooks = [module.register_forward_hook(watch) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        loss().backward()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found)


def operations(function: Callable[[], object]) -> list[Operation]:
    """What torch.profiler sees while the function runs, the operation that takes longest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it tells that there is no GPU
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        function()
    rows = [Operation(row.key, row.self_cpu_time_total / 1000, row.count) for row in seen.key_averages()]
    return sorted(rows, key=lambda row: -row.milliseconds)
