"""`condinst-edu bench`: what the fast forms of a step gain over the plain ones, side by side on this machine.

    condinst-edu bench mask-head            a table; the reference of every group is the form that the papers describe
    condinst-edu bench targets --json       the same as JSON
    condinst-edu bench lessons              each notebook's seconds, beside its budget
    condinst-edu bench inference            beside torchvision's Mask R-CNN and FCOS
    condinst-edu bench instances            time against the number of instances, beside Mask R-CNN
    condinst-edu bench training             the same in training, made for a GPU
    condinst-edu bench loader               training samples a second, beside torchvision's transforms
    condinst-edu bench evaluation           encoding and scoring of 100 masks an image
    condinst-edu bench panoptic             panoptic quality of COCO files

All variants of a group run in turn (A B C, A B C, ...), so that whatever slows the machine down slows all of them: the
ratios of the medians hold on a busy machine too, the milliseconds do not. One thread unless told otherwise.

Legend: N instances, C feature channels, H, W map.
"""

import dataclasses
import json
import os
import platform
import re
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import pi
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condinst_edu.condinst import CondInst
from condinst_edu.coordinates import relative_coordinates
from condinst_edu.errors import UserError
from condinst_edu.fcos import make_points
from condinst_edu.layers.images import Size
from condinst_edu.layers.upsample import aligned_upsample, resize_masks
from condinst_edu.mask_head import DynamicMaskHead, can_compile, split_parameters
from condinst_edu.progress import progress_bar

Head = Callable[..., Tensor]


@dataclass
class Bench:
    """Compare the fast forms of a step with the plain ones, on this machine."""

    name: Annotated[
        Literal[
            "mask-head", "targets", "instances", "inference", "training", "loader", "evaluation", "panoptic", "lessons"
        ],
        tyro.conf.Positional,
    ]
    """mask-head: the dynamic mask head in inference and training, and the way from its logits to binary masks.
    targets: target assignment beside a training step.
    instances: CondInst and Mask R-CNN at several numbers of instances.
    inference: CondInst and FCOS beside torchvision's Mask R-CNN and FCOS, from an image to its results.
    training: a training step and inference of CondInst beside torchvision's Mask R-CNN, made for a GPU.
    loader: reading and augmenting of COCO-like images, beside torchvision's v2 transforms.
    evaluation: encoding and scoring of 100 masks an image.
    panoptic: panoptic quality of COCO files, read from the disk.
    lessons: how long each notebook takes, beside its budget."""
    json: bool = False
    """Print JSON instead of a table."""
    threads: int = 1
    """Threads of torch; on a busy machine several of them mostly wait for each other."""
    runs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """How often each variant runs; each number is the median. Default: 7, inference 10, others 3."""
    counts: tuple[int, ...] = (1, 10, 50, 100)
    """Of "instances": how many there are in the image."""
    size: tuple[int, int] = (480, 640)
    """Of "instances": height and width of the image that the full-size models see; the tiny ones see 128x128.
    Of "inference": those of the image, which is enlarged to a short side of 800 pixels. Of "training": of all."""
    device: str = "cpu"
    """Of "training": where to run, cpu or cuda."""
    batch: int = 2
    """Of "training": images of a step."""
    images: int = 200
    """Of "loader", "evaluation" and "panoptic": how many images each run takes."""


@dataclass
class Variant:
    """One way to do it. times: of all runs; speedup: median time of the group's reference over this one's."""

    name: str
    times_ms: list[float] = field(default_factory=list)
    median_ms: float | None = None
    speedup: float | None = None
    goal: dict[str, float] = field(default_factory=dict)  # `speedup` at least, all others at most
    skipped: str | None = None  # why it did not run
    facts: dict[str, float] = field(default_factory=dict)


@dataclass
class Group:
    """Ways to the same result; the first is the reference."""

    name: str
    what: str
    variants: list[Variant]

    def __getitem__(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)


def run_bench(options: Bench) -> None:
    """Run one bench and print it. Errors: UserError where threads or runs are not positive."""
    if options.threads < 1 or (options.runs is not None and options.runs < 1):
        raise UserError("bench needs at least one thread and one run")
    if options.name == "lessons":
        from condinst_edu.teach.lessons import bench_lessons

        bench_lessons(options.json)
        return
    bench: Callable[..., list[Group]] = bench_mask_head if options.name == "mask-head" else bench_targets
    if options.name == "instances":
        from condinst_edu.bench_instances import bench_instances  # here, since it takes the measuring from this module

        bench = partial(bench_instances, counts=options.counts, size=options.size)
    elif options.name == "inference":
        from condinst_edu.bench_inference import bench_inference

        bench = partial(bench_inference, size=options.size)
    elif options.name == "training":
        from condinst_edu.bench_training import bench_training

        bench = partial(bench_training, device=options.device, batch=options.batch, size=options.size)
    elif options.name == "loader":
        from condinst_edu.bench_loader import bench_loader

        bench = partial(bench_loader, images=options.images)
    elif options.name == "evaluation":
        from condinst_edu.bench_evaluation import bench_evaluation

        bench = partial(bench_evaluation, images=options.images)
    elif options.name == "panoptic":
        from condinst_edu.bench_panoptic import bench_panoptic

        bench = partial(bench_panoptic, images=options.images)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    try:
        with progress_bar(not options.json) as progress:
            groups = bench(options.runs or {"mask-head": 7, "inference": 10}.get(options.name, 3), progress)
    finally:
        torch.set_num_threads(threads)
    result = report(options, groups, time.perf_counter() - start)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_tables(result)
        print(sentence(groups))


# ---------------------------------------------------------------------------------------------------------- measuring


def race(what: str, functions: Mapping[str, Callable[[], object]], runs: int, progress: Progress) -> list[Variant]:
    """Times of all functions, one after the other in every round; a first round warms up and does not count."""
    variants = [Variant(name) for name in functions]
    task = progress.add_task(what, total=(runs + 1) * len(functions), note="")
    for i in range(runs + 1):
        for variant, function in zip(variants, functions.values(), strict=True):
            progress.update(task, note=variant.name)
            start = time.perf_counter()
            function()
            if i:
                variant.times_ms.append(1000 * (time.perf_counter() - start))
            progress.advance(task)
    progress.update(task, note="")
    for variant in variants:
        variant.median_ms = statistics.median(variant.times_ms)
        variant.speedup = statistics.median(variants[0].times_ms) / variant.median_ms
    return variants


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensors that were alive at once, of those made inside the block, backward pass included.

    It follows each storage from the operation that returned it until it is freed, so the number is the same in every
    run. A process's resident memory grows as much where the allocator gives back at once what is freed; otherwise it
    also holds what the allocator keeps. What an operation uses within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.peak = 0, 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.bytes -= size


def difference(result: Tensor, reference: Tensor) -> float:
    """Largest absolute difference, as a share of the reference's largest number."""
    return ((result - reference).abs().max() / reference.abs().max()).item()


# ---------------------------------------------------------------------------------------------------------- mask head


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


# ------------------------------------------------------------------------------------------------------------ targets


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


# ------------------------------------------------------------------------------------------------------------- output


def machine() -> dict[str, str | int | None]:
    """What the numbers depend on."""
    try:
        info = Path("/proc/cpuinfo").read_text()  # elsewhere than on Linux nothing says more than the architecture
    except OSError:
        info = ""
    name = re.search(r"model name\s*: (.+)", info)
    return {
        "processor": name[1] if name else platform.machine(),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(options: Bench, groups: list[Group], seconds: float) -> dict[str, Any]:
    """The whole bench as plain data: per variant its times, their median, `speedup`, goal and facts, or why not."""

    def variant(v: Variant) -> dict[str, Any]:
        plain = {k: x for k, x in dataclasses.asdict(v).items() if k != "facts" and x not in (None, [], {})}
        return plain | v.facts

    return {
        "bench": options.name,
        "threads": options.threads,
        "runs": len(groups[0].variants[0].times_ms),
        "seconds": seconds,
        "machine": machine(),
        "groups": [
            {"name": g.name, "what": g.what, "reference": g.variants[0].name, "variants": [*map(variant, g.variants)]}
            for g in groups
        ],
    }


def print_tables(result: dict[str, Any]) -> None:
    """One table per group."""
    console, about = Console(), result["machine"]
    console.print(
        f"{result['bench']}: medians of {result['runs']} interleaved runs, threads: {result['threads']}, "
        f"{about['cores']} cores, {about['processor']}, torch {about['torch']}, {result['seconds']:.0f} s in all\n"
    )
    for group in result["groups"]:
        variants = group["variants"]
        facts = [key for key in variants[0] if key not in {f.name for f in dataclasses.fields(Variant)}]
        table = Table(title=f"{group['name']}: {group['what']}", title_justify="left")
        columns = {"": [v["name"] for v in variants]}
        for name, key in {"ms": "median_ms", "speedup": "speedup", **{key: key for key in facts}}.items():
            columns[name.replace("_", " ")] = [format_number(v.get(key)) for v in variants]
        columns["goal"] = [v.get("skipped") or describe_goal(v) for v in variants]
        columns = {name: cells for name, cells in columns.items() if any(cells)}
        for name in columns:
            table.add_column(name, justify="right" if name else "left")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        console.print(table)


def format_number(x: float | None) -> str:
    return "" if x is None else f"{x:.0f}" if abs(x) >= 99.5 else f"{x:.2g}"


def describe_goal(variant: dict[str, Any]) -> str:
    """The goal, and whether it is missed; `speedup` is wanted high, everything else low."""
    goals = []
    for name, goal in variant.get("goal", {}).items():
        high = name == "speedup"
        missed = variant[name] < goal if high else variant[name] > goal
        goals.append(f"{name.replace('_', ' ')} {'≥' if high else '≤'} {goal:g}{', missed' * missed}")
    return "; ".join(goals)


def sentence(groups: list[Group]) -> str:
    """What the numbers say."""
    if groups[0].name == "targets":
        assignment = groups[0]["assignment"]
        return f"Assigning targets takes {assignment.facts['share']:.1%} of a training step's time."
    if groups[0].name == "full size":
        condinst, mask_rcnn = groups[0].variants[-2:]
        fewest, most = (variant.facts["instances"] for variant in (groups[0].variants[0], condinst))
        return (
            f"With {most:g} instances instead of {fewest:g}, CondInst takes {condinst.facts['ratio_to_fewest']:.2f} "
            f"times as long, Mask R-CNN {mask_rcnn.facts['ratio_to_fewest']:.2f} times."
        )
    if groups[0].name == "ResNet-50":
        facts = groups[0].variants[3].facts
        return (
            f"CondInst takes {facts['ratio_to_mask_rcnn']:.2f} of the time of torchvision's Mask R-CNN and "
            f"{facts['ratio_to_torchvision_fcos']:.2f} of that of its FCOS."
        )
    if groups[0].name == "training":
        trained, segmented, head = groups
        return (
            f"CondInst trains {trained['CondInst'].speedup:.2f} times as fast as torchvision's Mask R-CNN and segments "
            f"{segmented['CondInst'].speedup:.2f} times as fast; its mask head takes "
            f"{head.variants[0].facts['share']:.1%} of that."
        )
    if groups[0].name == "loader":
        outlines = groups[0]["outlines"]
        return (
            f"One core loads {outlines.facts['images_per_second']:.0f} images a second, "
            f"{outlines.speedup:.1f} times as many as through torchvision's transforms."
        )
    if groups[0].name == "evaluation":
        seconds = groups[0]["both"].facts["seconds_for_5000"]
        return f"At this rate, COCO's 5000 images with as many masks each take {seconds:.0f} seconds."
    if groups[0].name == "panoptic":
        seconds = groups[0]["score"].facts["seconds_for_5000"]
        return f"At this rate, COCO's 5000 images take {seconds:.0f} seconds."
    heads, trained, drawn, large = groups
    compiled = heads["compiled"]
    and_compiled = f" ({compiled.speedup:.0f}x compiled)" if compiled.speedup else ""
    return (
        f"Folding the coordinates makes the mask head {heads['folded'].speedup:.0f}x as fast{and_compiled}, "
        f"training takes {trained['folded'].facts['memory_ratio']:.0%} of the memory, "
        f"and masks are drawn {drawn['resize_masks'].speedup:.0f}x as fast as by resizing whole maps "
        f"({large['resize_masks'].speedup:.0f}x where all objects are large)."
    )
