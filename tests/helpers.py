"""What the tests of the models share: official numbers, small models, random objects, a record of what torch ran."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from condinst_edu.condinst import CondInst
from condinst_edu.fcos import FCOS, FCOSHead, Outputs, Points, make_points

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("CONDINST_GOLDEN", ROOT.parent / "shared" / "golden")) / "adelaidet"
DATA = Path(__file__).resolve().parent / "data" / "adelaidet"


def official_file(name: str, part: bool = False) -> Path:
    """Numbers that the official implementation produced; the folder is named by CONDINST_GOLDEN.

    Some of these files are in tests/data too, which serves where the folder is absent; the test is skipped without
    both. part: a file that holds a part of these numbers will do.
    """
    for path in (GOLDEN / name, DATA / name, *([DATA / f"part_{name}"] if part else [])):
        if path.is_file():
            return path
    pytest.skip(f"{name} is neither in {GOLDEN} (set CONDINST_GOLDEN) nor in {DATA}")


def official(name: str, part: bool = False) -> dict[str, np.ndarray]:
    with np.load(official_file(name, part)) as file:
        return dict(file)


def official_json(name: str, part: bool = False) -> Any:
    return json.loads(official_file(name, part).read_text())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Equal shapes and values, absolutely and relatively within the tolerance; the types may differ."""
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def same_to_scale(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal shapes, and the largest difference within `tolerance` of the largest value expected."""
    assert actual.shape == expected.shape
    scale = expected.double().abs().max().clamp(min=1e-12)
    assert (actual.double() - expected.double()).abs().max() <= tolerance * scale


class Record(TorchDispatchMode):
    """Which operations torch runs, how often, and the shapes of all tensors that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.counts[str(func)] += 1
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.shapes.add(tuple(x.shape))
        return result


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator, grid: float = 0) -> Tensor:
    """Boxes (count, 4) float64 xyxy of all sizes within the image; grid: round their corners to multiples of it."""
    height, width = size
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * torch.tensor([width, height])
    if grid:
        corners = (corners / grid).round() * grid
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def random_targets(
    count: int, size: tuple[int, int], generator: torch.Generator, num_classes: int = 3
) -> dict[str, Tensor]:
    """A target of `count` overlapping ellipses: boxes that enclose them, labels, full-size masks."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middle = torch.rand(count, 2, generator=generator) * torch.tensor([width - 1, height - 1])
    radii = (0.08 + 0.25 * torch.rand(count, 2, generator=generator)) * min(size)
    dx, dy = (
        (v - c[:, None, None]) / r[:, None, None]
        for v, c, r in ((x, middle[:, 0], radii[:, 0]), (y, middle[:, 1], radii[:, 1]))
    )
    masks = dx**2 + dy**2 <= 1
    return {
        "boxes": mask_boxes(masks),
        "labels": torch.randint(1, num_classes + 1, (count,), generator=generator),
        "masks": masks,
    }


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) that enclose the masks' pixels, each of which is a unit square; no mask may be empty."""
    boxes = []
    for mask in masks:
        y, x = torch.nonzero(mask, as_tuple=True)
        boxes.append([x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def empty_target(size: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, *size, dtype=torch.bool),
    }


TINY: dict[str, Any] = {
    "backbone": "tiny",
    "backbone_options": {"widths": (4, 8, 12, 16, 16)},
    "levels": (3, 4, 5),
    "ranges": (32, 64),
    "channels": 16,
}


def tiny_fcos(num_classes: int = 3, **options: Any) -> FCOS:
    """A whole detector that runs in milliseconds."""
    head = {"tower_convs": 1, **options.pop("head", {})}
    return FCOS(num_classes, **{**TINY, **options}, head=head)


def tiny_condinst(num_classes: int = 3, **options: Any) -> CondInst:
    """A whole CondInst that runs in milliseconds."""
    head = {"tower_convs": 1, **options.pop("head", {})}
    bottom = {"channels": 16, "convs": 1, **options.pop("bottom", {})}
    return CondInst(num_classes, bottom=bottom, **{**TINY, **options}, head=head)


def enliven(model: nn.Module, generator: torch.Generator) -> None:
    """Random weights and statistics with which an untrained detector finds a few dozen large boxes in eval mode."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(module, FCOSHead):
                for parameter in module.parameters():
                    if parameter.dim() == 4:
                        parameter.normal_(0, (3 / parameter[0].numel()) ** 0.5, generator=generator)
                for layer, bias in ((module.class_logits, -2), (module.box_distances, 2.5)):
                    assert layer.bias is not None
                    layer.bias.fill_(bias)


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss, zeros where it does not depend on an input."""
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def check_gradients(loss: Callable[[], Tensor], model: nn.Module, all_nonzero: bool = True) -> None:
    """Backpropagate and ask that every trainable parameter has got a finite gradient, and a nonzero one if asked."""
    model.zero_grad(set_to_none=True)
    total = loss()
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
            assert not all_nonzero or parameter.grad.abs().sum() > 0, f"the gradient of {name} is 0"


def step_operations(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Counter[str]:
    """Which operations torch runs in a training step, and how often."""
    model.zero_grad(set_to_none=True)
    with Record() as record:
        sum(model(images, targets).values()).backward()
    return record.counts


def official_outputs(
    numbers: dict[str, np.ndarray], strides: Sequence[int], ranges: Sequence[tuple[float, float]]
) -> tuple[Points, Outputs]:
    """Raw outputs of the official detector, level by level (1, C, H, W), in our form.

    The field `tower` holds what its controller gives at each location: see `see_tower`.
    """
    maps = [
        [torch.from_numpy(numbers[f"{name}_{level}"]) for level in range(len(strides))]
        for name in ("cls_logits", "bbox_reg", "ctrness", "top_feats")
        if f"{name}_0" in numbers
    ]
    fields = [torch.cat([m.flatten(2).mT for m in levels], dim=1) for levels in maps]
    theta = fields[3] if len(fields) > 3 else fields[0][..., :0]
    return make_points(maps[0], strides, ranges), Outputs(fields[0], fields[1], fields[2].squeeze(-1), theta)


def points_at(
    xy: Sequence[tuple[float, float]], strides: Sequence[float], reach: Sequence[tuple[float, float]]
) -> Points:
    """Single locations without a map around them, in float64; one stride or reach for all, or one for each."""
    count = len(xy)
    off = torch.full((count, 9), count)
    stride = torch.tensor(strides, dtype=torch.float64).expand(count)
    limits = torch.tensor(reach, dtype=torch.float64).expand(count, 2)
    return Points(torch.tensor(xy, dtype=torch.float64), stride, limits, torch.arange(count), off)


def see_tower(head: FCOSHead) -> None:
    """Let the top module pass the tower's features on, so that `Outputs.tower` is what it gives at each location."""
    assert head.top is not None
    channels = head.top.out_channels
    head.top = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        head.top.weight.zero_()
        head.top.weight[:, :, 1, 1] = torch.eye(channels)
        assert head.top.bias is not None
        head.top.bias.zero_()
