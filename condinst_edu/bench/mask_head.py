"""`condinst-edu bench mask-head`: the dynamic mask head in inference and training, and the way from logits to masks.

The reference is what the official code does: every instance a group of a convolution, whole maps resized step by step.

Legend: N instances, C feature channels, H, W map.
"""

from collections.abc import Callable
from functools import partial
from math import pi

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from condinst_edu.bench import Bench, Group, PeakMemory, Variant, race
from condinst_edu.coordinates import relative_coordinates
from condinst_edu.layers.images import Size
from condinst_edu.layers.upsample import aligned_upsample, resize_masks
from condinst_edu.mask_head import DynamicMaskHead, can_compile, split_parameters

Head = Callable[..., Tensor]
RUNS = 7


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_mask_head(runs, progress)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    heads, trained, drawn, large = groups
    compiled = heads["compiled"]
    and_compiled = f" ({compiled.speedup:.0f}x compiled)" if compiled.speedup else ""
    return (
        f"Folding the coordinates makes the mask head {heads['folded'].speedup:.0f}x as fast{and_compiled}, "
        f"training takes {trained['folded'].facts['memory_ratio']:.0%} of the memory, "
        f"and masks are drawn {drawn['resize_masks'].speedup:.0f}x as fast as by resizing whole maps "
        f"({large['resize_masks'].speedup:.0f}x where all objects are large)."
    )


def bench_mask_head(
    runs: int,
    progress: Progress,
    instances: int = 100,
    locations: int = 200,
    size: Size = (100, 136),
    output_size: Size = (480, 650),
) -> list[Group]:
    """Inference, training and drawing of masks. size: of the map at stride 8; output_size: of the image, in pixels."""
    return [
        inference(runs, progress, Scene(instances, size)),
        training(runs, progress, Scene(locations, size)),
        drawing(runs, progress, "drawing", coco_like_logits(instances, size), output_size),
        drawing(runs, progress, "drawing large objects", large_logits(instances, size), output_size),
    ]


class Scene:
    """Random input of a mask head: features (8, H, W), theta (N, 169), centers (N, 2) and scales (N,) in pixels."""

    stride = 8

    def __init__(self, instances: int, size: Size) -> None:
        random = torch.Generator().manual_seed(0)
        height, width = size
        extent = torch.tensor([width * self.stride, height * self.stride])
        self.features = torch.randn(8, height, width, generator=random)
        self.theta = 0.3 * torch.randn(instances, DynamicMaskHead().num_parameters, generator=random)
        self.centers = extent * torch.rand(instances, 2, generator=random)
        self.scales = 64 * 2.0 ** torch.randint(0, 5, (instances,), generator=random)
        self.weight = torch.randn(instances, *size, generator=random)  # of the logits in the sum that is differentiated
        self.text = f"{instances} instances on a {height}x{width} map, {len(self.features)} channels"

    def logits(self, head: Head) -> Tensor:
        return head(self.features, self.theta, self.centers, self.scales, self.stride)

    def gradients(self, head: Head, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Of a weighted sum of the logits, with respect to features and theta."""
        inputs = [x.detach().to(dtype).requires_grad_() for x in (self.features, self.theta)]
        logits = head(*inputs, self.centers.to(dtype), self.scales.to(dtype), self.stride)
        return torch.autograd.grad(logits, inputs, self.weight.to(dtype))


def grouped_mask_head(features: Tensor, theta: Tensor, centers: Tensor, scales: Tensor, stride: int) -> Tensor:
    """The reference, as the official code has it: every instance is a group of a convolution, with its own input.

    Arguments and result as those of DynamicMaskHead with its default settings.
    """
    n, size = len(theta), (features.shape[-2], features.shape[-1])
    weights, biases = split_parameters(theta, (10, 8, 8, 1))
    coordinates = relative_coordinates(size, stride, centers, scales)  # (N, 2, H, W)
    x = torch.cat([coordinates, features.expand(n, -1, -1, -1)], dim=1).flatten(0, 1)[None]  # (1, N * 10, H, W)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.conv2d(x if i == 0 else F.relu(x), weight.flatten(0, 1)[:, :, None, None], bias.flatten(), groups=n)
    return x[0]


def inference(runs: int, progress: Progress, scene: Scene) -> Group:
    heads: dict[str, Head] = {"grouped": grouped_mask_head, "folded": DynamicMaskHead()}
    if can_compile():
        heads["compiled"] = DynamicMaskHead(compiled=True)
    with torch.no_grad():
        functions = {name: partial(scene.logits, head) for name, head in heads.items()}
        group = Group("inference", scene.text, race("mask head, inference", functions, runs, progress))
        expected = functions["grouped"]()
        for variant in group.variants:
            variant.facts["difference"] = difference(functions[variant.name](), expected)
    if "compiled" not in heads:
        group.variants.append(Variant("compiled", skipped="no C++ compiler found, which torch.compile needs"))
    group["folded"].goal, group["compiled"].goal = {"speedup": 6}, {"speedup": 20}
    return group


def training(runs: int, progress: Progress, scene: Scene) -> Group:
    """Forward and backward. Gradients are compared in float64: where a number is rounded to the other side of a ReLU's
    kink, which happens in float32 at some pixel of millions, both results are right and the gradients differ there."""
    heads: dict[str, Head] = {"grouped": grouped_mask_head, "folded": DynamicMaskHead()}
    functions = {name: partial(scene.gradients, head) for name, head in heads.items()}
    group = Group("training", scene.text, race("mask head, training", functions, runs, progress))
    exact = [scene.gradients(head, torch.float64) for head in heads.values()]
    for variant, gradients in zip(group.variants, exact, strict=True):
        with PeakMemory() as memory:
            functions[variant.name]()
        differences = [difference(x, y) for x, y in zip(gradients, exact[0], strict=True)]
        variant.facts = {"memory_mb": memory.peak / 2**20, "gradient_difference": max(differences)}
    for variant in group.variants:
        variant.facts["memory_ratio"] = variant.facts["memory_mb"] / group["grouped"].facts["memory_mb"]
    group["folded"].goal = {"memory_ratio": 0.25}
    return group


# ------------------------------------------------------------------------------------------------------ drawing masks


def coco_like_logits(count: int, size: Size) -> Tensor:
    """Objects of COCO's sizes: 41 % have less than 32^2, 24 % more than 96^2 pixels of an image of 640x480."""
    random = torch.Generator().manual_seed(0)
    across = 42 * torch.exp(1.18 * torch.randn(count, generator=random))  # the lognormal with those two shares
    return object_logits((across / (640 * 480) ** 0.5).clamp(max=0.9), size, random)


def large_logits(count: int, size: Size) -> Tensor:
    """Objects of 0.3 to 0.9 of the map, each with five specks anywhere: what is hardest to confine to a window."""
    random = torch.Generator().manual_seed(0)
    logits = object_logits(0.3 + 0.6 * torch.rand(count, generator=random), size, random).flatten(1)
    specks = torch.randint(0, logits.shape[1], (count, 5), generator=random)
    return logits.scatter(1, specks, 1.0).unflatten(1, size)


def object_logits(across: Tensor, size: Size, random: torch.Generator) -> Tensor:
    """Mask logits (N, H, W) of ellipses with wobbly rims and noise; across (N,): square root of their area, in maps."""
    height, width = size
    n = len(across)

    def draw(scale: float) -> Tensor:
        return scale * torch.randn(n, 1, 1, generator=random)

    radius = across[:, None, None] * (height * width / pi) ** 0.5
    stretch = torch.exp(draw(0.2))
    y, x = torch.arange(height)[:, None], torch.arange(width)
    dx = (x - width * torch.rand(n, 1, 1, generator=random)) / (radius * stretch)
    dy = (y - height * torch.rand(n, 1, 1, generator=random)) / (radius / stretch)
    angle = torch.atan2(dy, dx)
    rim = 1 + sum(draw(0.12) * torch.sin(k * angle + draw(3)) for k in (2, 3, 5, 9))
    logits = 2 * radius * (rim - torch.hypot(dx, dy))  # about 2 per cell
    return logits.clamp(-8, 8) + 0.3 * torch.randn(n, *size, generator=random)


def whole_maps(logits: Tensor, stride: int, input_size: Size, output_size: Size, factor: int) -> Tensor:
    """The reference: probabilities (N, *output_size) by resizing every whole map, step by step as in the paper."""
    scores = aligned_upsample(logits, factor).sigmoid()
    scores = aligned_upsample(scores, stride // factor)[:, : input_size[0], : input_size[1]]
    return F.interpolate(scores[None], output_size, mode="bilinear", align_corners=False)[0]


def drawing(runs: int, progress: Progress, name: str, logits: Tensor, output_size: Size) -> Group:
    """From mask logits at stride 8, upsampled by 2, to binary masks of the image's size."""
    n, height, width = logits.shape
    arguments = (8, (8 * height, 8 * width - 5), output_size, 2)  # the input was padded by 5 columns
    functions: dict[str, Callable[[], Tensor]] = {
        "whole maps": lambda: whole_maps(logits, *arguments) > 0.5,
        "resize_masks": lambda: resize_masks(logits, *arguments),
    }
    with torch.no_grad():
        variants = race(f"masks, {name}", functions, runs, progress)
        scores = whole_maps(logits, *arguments)
    # What a few roundings in float32 can move from one side of the threshold to the other is a tie.
    tie = (scores - 0.5).abs() < 1e-6
    for variant in variants:
        wrong = functions[variant.name]() != (scores > 0.5)
        variant.facts = {"pixels_differ": int(wrong.sum()), "ties": int((wrong & tie).sum())}
    covered = (logits > 0).float().mean().item()
    what = f"{n} masks, {height}x{width} to {output_size[0]}x{output_size[1]}, each on {covered:.0%} of its map"
    group = Group(name, what, variants)
    group["resize_masks"].goal = {"speedup": 15}
    return group


def difference(result: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, as a share of the reference's largest number."""
    return ((result - reference).abs().max() / reference.abs().max()).item()
