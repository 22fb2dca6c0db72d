"""`condinst-edu bench`: what the fast forms of a step gain over the plain ones, side by side on this machine.

    condinst-edu bench mask-head            a table; the reference of every group is the form that the papers describe
    condinst-edu bench targets --json       the same as JSON
    condinst-edu bench lessons              each notebook's seconds, beside its budget
    condinst-edu bench inference            beside torchvision's Mask R-CNN and FCOS
    condinst-edu bench instances            time against the number of instances, beside Mask R-CNN
    condinst-edu bench dr1conv              DR1Conv beside a plain and a fully dynamic convolution
    condinst-edu bench training             the same in training, made for a GPU
    condinst-edu bench solo                 memory and time of SOLO and Decoupled SOLO
    condinst-edu bench loader               training samples a second, beside torchvision's transforms
    condinst-edu bench evaluation           encoding and scoring of 100 masks an image
    condinst-edu bench panoptic             panoptic quality of COCO files

All variants of a group run in turn (A B C, A B C, ...), so that whatever slows the machine down slows all of them: the
ratios of the medians hold on a busy machine too, the milliseconds do not. One thread unless told otherwise.
"""

import dataclasses
import importlib
import json
import os
import platform
import re
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from condinst_edu.errors import UserError
from condinst_edu.progress import progress_bar


@dataclass
class Bench:
    """Compare the fast forms of a step with the plain ones, on this machine."""

    name: Annotated[
        Literal[
            "mask-head",
            "targets",
            "instances",
            "inference",
            "dr1conv",
            "training",
            "solo",
            "loader",
            "evaluation",
            "panoptic",
            "lessons",
        ],
        tyro.conf.Positional,
    ]
    """mask-head: the dynamic mask head in inference and training, and the way from its logits to binary masks.
    targets: target assignment beside a training step.
    instances: CondInst and Mask R-CNN at several numbers of instances.
    inference: CondInst and FCOS beside torchvision's Mask R-CNN and FCOS, from an image to its results.
    dr1conv: DR1Conv beside a plain convolution of its width and a fully dynamic one.
    training: a training step and inference of CondInst beside torchvision's Mask R-CNN, made for a GPU.
    solo: memory and time of SOLO, Decoupled SOLO and its light form, with ResNet-50.
    loader: reading and augmenting of COCO-like images, beside torchvision's v2 transforms.
    evaluation: encoding and scoring of 100 masks an image.
    panoptic: panoptic quality of COCO files, read from the disk.
    lessons: how long each notebook takes, beside its budget."""
    json: bool = False
    """Print JSON instead of a table."""
    threads: int = 1
    """Threads of torch; on a busy machine several of them mostly wait for each other."""
    runs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """How often each variant runs; each number is the median. Default: 7, dr1conv 30, inference 10, others 3."""
    counts: tuple[int, ...] = (1, 10, 50, 100)
    """Of "instances": how many there are in the image."""
    size: tuple[int, int] = (480, 640)
    """Of "instances": height and width of the image that the full-size models see; the tiny ones see 128x128.
    Of "inference": those of the image, which is enlarged to a short side of 800 pixels. "training", "solo": of all."""
    device: str = "cpu"
    """Of "training": where to run, cpu or cuda."""
    batch: int = 2
    """Of "training" and "solo": images of a step."""
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
    # Each bench is a module of its own: `run` gives its groups, `conclude` says what they mean, RUNS is the default.
    bench = importlib.import_module(f"condinst_edu.bench_{options.name.replace('-', '_')}")
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    try:
        with progress_bar(not options.json) as progress:
            groups = bench.run(options, options.runs or bench.RUNS, progress)
    finally:
        torch.set_num_threads(threads)
    result = report(options, groups, time.perf_counter() - start)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_tables(result)
        print(bench.conclude(groups))


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
