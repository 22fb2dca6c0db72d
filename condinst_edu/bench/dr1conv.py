"""`condinst-edu bench dr1conv`: DR1Conv beside a plain convolution of its width, and beside a fully dynamic one.

    plain        3x3 convolution, D to D channels, one kernel for all positions
    DR1Conv      the same, times A before and B after it, both given
    A and B      the layer that makes both from a tower's map: 3x3 convolution, C to 2 D channels
    dynamic      a kernel of its own for every position, given: 9 D^2 numbers, where DR1Conv has 2 D

Forward passes of one image. On maps as large as P3 the kernels of the dynamic one do not fit into memory; it runs on a
map like P5's only, beside the others on that map.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from condinst_edu.bench import Bench, Group, race
from condinst_edu.dr1mask import ContextLayer, DR1Conv2d
from condinst_edu.layers.images import Size

RUNS = 30


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_dr1conv(runs, progress)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    large, small = groups
    return (
        f"Given A and B, DR1Conv takes {large['DR1Conv'].facts['ratio']:.2f} times as long as a plain convolution, "
        f"making A and B {large['A and B'].facts['ratio']:.1f} times; with a kernel for every position it would be "
        f"{small['dynamic'].facts['ratio']:.0f} times, and {small['dynamic'].facts['numbers_a_position']:.0f} numbers "
        f"to make at each instead of {small['DR1Conv'].facts['numbers_a_position']:.0f}."
    )


def bench_dr1conv(
    runs: int,
    progress: Progress,
    width: int = 32,
    channels: int = 256,
    size: Size = (100, 136),
    small: Size = (25, 34),
) -> list[Group]:
    """width: D; channels: of the tower; size, small: (height, width) of P3 and P5 of an image of 800x1088 pixels."""
    with torch.inference_mode():
        return [compare(runs, progress, f"P{level}", width, channels, s) for level, s in ((3, size), (5, small))]


def compare(runs: int, progress: Progress, name: str, width: int, channels: int, size: Size) -> Group:
    """One map; the dynamic convolution where it is P5."""
    torch.manual_seed(0)
    layer, context = DR1Conv2d(width), ContextLayer(channels, width)
    x, a, b = (torch.randn(1, width, *size) for _ in range(3))
    tower = torch.randn(1, channels, *size)
    functions: dict[str, Callable[[], object]] = {
        "plain": partial(layer.conv, x),
        "DR1Conv": partial(layer, x, a, b),
        "A and B": partial(context, [tower]),
    }
    numbers = {"plain": 0, "DR1Conv": 2 * width, "A and B": 2 * width, "dynamic": 9 * width**2}
    if name == "P5":
        kernels = layer.conv.weight.flatten(1).expand(size[0] * size[1], -1, -1).contiguous()
        functions["dynamic"] = partial(dynamic_convolution, x[0], kernels)
    variants = race(f"DR1Conv, {name}", functions, runs, progress)
    for variant in variants:
        variant.facts = {
            "ratio": (variant.median_ms or 0) / (variants[0].median_ms or 1),
            "numbers_a_position": numbers[variant.name],
        }
    variants[1].goal = {"ratio": 1.35}
    return Group(name, f"one map of {size[0]}x{size[1]}, D = {width}, tower of {channels} channels", variants)


def dynamic_convolution(x: Tensor, kernels: Tensor) -> Tensor:
    """Another 3x3 kernel at every position: x (D, H, W), kernels (H * W, D, D * 9) -> (D, H, W)."""
    patches = F.unfold(x[None], 3, padding=1)[0].T[:, :, None]  # (H * W, D * 9, 1)
    return (kernels @ patches)[:, :, 0].T.unflatten(1, x.shape[1:])
