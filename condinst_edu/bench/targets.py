"""`condinst-edu bench targets`: target assignment of a batch beside a training step."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from condinst_edu.bench import Bench, Group, race
from condinst_edu.condinst import CondInst
from condinst_edu.fcos import make_points
from condinst_edu.layers.images import Size

RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_targets(runs, progress)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    assignment = groups[0]["assignment"]
    return f"Assigning targets takes {assignment.facts['share']:.1%} of a training step's time."


def bench_targets(
    runs: int,
    progress: Progress,
    images: int = 8,
    objects: int = 50,
    size: Size = (800, 1333),
    model_args: dict[str, Any] | None = None,
) -> list[Group]:
    """Target assignment of a batch beside a training step (forward and backward) of CondInst, by default with R-50.

    The step is measured on one image and multiplied, since eight large images need more memory than many a laptop has.
    """
    torch.manual_seed(0)
    model = CondInst(**(model_args or {})).to(memory_format=torch.channels_last).train()
    targets = [random_target(objects, size, model.mask_stride, seed) for seed in range(images)]
    padded = [-(-side // model.fcos.divisor) * model.fcos.divisor for side in size]
    maps = [torch.empty(1, 0, -(-padded[0] // s), -(-padded[1] // s)) for s in model.fcos.strides]
    points = make_points(maps, model.fcos.strides, model.fcos.ranges)
    image = torch.rand(3, *size)

    def step() -> None:
        model.zero_grad()
        sum(model([image], targets[:1]).values()).backward()

    functions: dict[str, Callable[[], object]] = {
        "step": step,
        "assignment": partial(model.fcos.assign, points, targets),
    }
    variants = race("training step and targets", functions, runs, progress)
    one_step, assignment = (statistics.median(variant.times_ms) for variant in variants)
    variants[0].facts = {"images": 1, "share": 1 / images}
    variants[1].facts = {"images": images, "share": assignment / (one_step * images)}
    variants[1].goal = {"share": 0.1}
    for variant in variants:
        variant.speedup = None  # one is a part of the other
    what = f"{images} images of {size[0]}x{size[1]}, {objects} objects each, {len(points.xy)} locations; "
    return [Group("targets", f"{what}the step is measured on one image and multiplied by {images}", variants)]


def random_target(objects: int, size: Size, stride: int, seed: int) -> dict[str, Tensor]:
    """Rectangles of many sizes as boxes and as masks that are sampled already, as the data pipeline gives them."""
    random = torch.Generator().manual_seed(seed)
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    center = limit * (0.05 + 0.9 * torch.rand(objects, 2, generator=random))
    side = 55 * torch.exp(torch.randn(objects, 2, generator=random))
    low, high = (center - side / 2).clamp(min=0), torch.minimum(center + side / 2, limit)
    x, y = (torch.arange(stride // 2, n, stride) for n in reversed(size))
    rows = (y >= low[:, 1:]) & (y < high[:, 1:])
    columns = (x >= low[:, :1]) & (x < high[:, :1])
    return {
        "boxes": torch.cat([low, high], dim=1),
        "labels": torch.randint(1, 3, (objects,), generator=random),
        "masks": rows[:, :, None] & columns[:, None],
        "centers": (low + high) / 2,
    }
