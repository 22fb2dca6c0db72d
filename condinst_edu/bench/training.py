"""`condinst-edu bench training`: CondInst with ResNet-50 beside torchvision's Mask R-CNN, made for a GPU.

    condinst-edu bench training --device cuda --size 800 1333 --batch 16 --threads 8

Three groups, convolutions in bfloat16 on a GPU and float32 on a CPU: a training step of a batch (forward, backward,
SGD), with the most memory it takes and how often the host waits for the GPU in it; inference of one image; and the
dynamic mask head alone, with its share of that time. Weights are random, with score thresholds that let equally many
candidates into NMS (see `bench_inference`).
"""

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

from condinst_edu.bench import Bench, Group, PeakMemory, race
from condinst_edu.bench.inference import calibrate, calibrate_mask_rcnn, our_model, run_ours, run_theirs
from condinst_edu.bench.targets import random_target
from condinst_edu.condinst import CondInst
from condinst_edu.engine.train import step
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size

OBJECTS = 7  # in an image, as COCO has on average
Models = tuple[CondInst, detection.MaskRCNN]
RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_training(runs, progress, device=options.device, batch=options.batch, size=options.size)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    trained, segmented, head = groups
    return (
        f"CondInst trains {trained['CondInst'].speedup:.2f} times as fast as torchvision's Mask R-CNN and segments "
        f"{segmented['CondInst'].speedup:.2f} times as fast; its mask head takes "
        f"{head.variants[0].facts['share']:.1%} of that."
    )


def full_size_models() -> Models:
    """The papers' models with ResNet-50; torchvision's with frozen batch norms too, but all stages trained."""
    condinst = our_model("CondInst_MS_R_50_1x")
    assert isinstance(condinst, CondInst)
    return condinst, detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, norm_layer=FrozenBatchNorm2d)


def bench_training(
    runs: int, progress: Progress, device: str = "cpu", batch: int = 16, size: Size = (800, 1333), count: int = 100
) -> list[Group]:
    """Times, memory and waits. size: (height, width) of all images; batch: images of a step; count: detections.

    Errors: UserError where batch or size are not positive, or a model finds fewer than `count`.
    """
    if min(*size, batch, count) < 1:
        raise UserError(f"--batch and --size are positive, not {batch} and {size}")
    torch.manual_seed(0)
    amp = torch.bfloat16 if device.startswith("cuda") else None
    condinst, mask_rcnn = full_size_models()
    mask_rcnn.transform.min_size, mask_rcnn.transform.max_size = (min(size),), max(size)  # resizes nothing
    for model in (condinst, mask_rcnn):
        model.to(device).to(memory_format=torch.channels_last)
    groups = [train_group(condinst, mask_rcnn, runs, progress, device, amp, batch, size)]
    image = torch.rand(3, *size, device=device)
    with torch.inference_mode(), torch.autocast(device.partition(":")[0], amp, enabled=amp is not None):
        calibrate(condinst.eval(), image)
        calibrate_mask_rcnn(mask_rcnn.eval(), image)
        groups += inference_groups(condinst, mask_rcnn, runs, progress, image, count)
    return groups


def train_group(
    condinst: CondInst,
    mask_rcnn: detection.MaskRCNN,
    runs: int,
    progress: Progress,
    device: str,
    amp: torch.dtype | None,
    batch: int,
    size: Size,
) -> Group:
    """A step of each. CondInst's masks are sampled at its stride, as the loader gives them; torchvision's are whole."""
    images = [torch.rand(3, *size, device=device) for _ in range(batch)]
    functions: dict[str, Callable[[], object]] = {}
    for name, model, stride in (("Mask R-CNN", mask_rcnn, 1), ("CondInst", condinst, condinst.mask_stride)):
        targets: list[dict[str, Any]] = [random_target(OBJECTS, size, stride, seed) for seed in range(batch)]
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
        functions[name] = partial(step, model.train(), optimizer, 0.0, images, targets, amp=amp)
    waiting = {name: finish(function, device) for name, function in functions.items()}
    variants = race("training", waiting, runs, progress)
    for variant in variants:
        function = functions[variant.name]
        variant.facts = {"images_per_second": 1000 * batch / (variant.median_ms or 1)}
        variant.facts["memory_gb"] = peak_memory(function, device) / 2**30
        if device.startswith("cuda"):
            variant.facts["waits"] = count_waits(function)
    if device.startswith("cuda"):
        variants[1].goal = {"waits": 1}
    return Group("training", f"a step of {batch} images of {size[0]}x{size[1]}, {OBJECTS} objects each", variants)


def inference_groups(
    condinst: CondInst, mask_rcnn: detection.MaskRCNN, runs: int, progress: Progress, image: Tensor, count: int
) -> list[Group]:
    """Whole forward passes to binary masks, and the mask head of `count` instances."""
    size = (image.shape[1], image.shape[2])
    features = torch.rand(condinst.bottom.out_channels, *(-(-side // condinst.stride) for side in size)).to(image)
    theta = torch.randn(count, condinst.mask_head.num_parameters).to(image)
    centers, scales = torch.rand(count, 2).to(image) * min(size), torch.full((count,), 64.0).to(image)
    device = str(image.device)
    functions: dict[str, Callable[[], object]] = {
        "Mask R-CNN": partial(run_theirs, mask_rcnn, image, count),
        "CondInst": partial(run_ours, condinst, image, min(size), count),
        "mask head": partial(condinst.mask_head, features, theta, centers, scales, condinst.stride),
    }
    waiting = {name: finish(function, device) for name, function in functions.items()}
    variants = race("inference", waiting, runs, progress)
    for variant in variants[:2]:
        variant.facts = {"images_per_second": 1000 / (variant.median_ms or 1)}
    share = (variants[2].median_ms or 0) / (variants[1].median_ms or 1)
    variants[2].speedup, variants[2].facts, variants[2].goal = None, {"share": share}, {"share": 0.03}
    what = f"one image of {size[0]}x{size[1]}, {count} detections with masks"
    return [Group("inference", what, variants[:2]), Group("mask head", f"{count} instances", variants[2:])]


def finish(function: Callable[[], object], device: str) -> Callable[[], object]:
    """The function, and the wait until a GPU is done with it."""

    def run() -> None:
        function()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return run


def peak_memory(function: Callable[[], object], device: str) -> int:
    """The most bytes in use at once: on a GPU all of its tensors, on a CPU those that the function makes."""
    if not device.startswith("cuda"):
        with PeakMemory() as memory:
            function()
        return memory.peak
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device)


def count_waits(function: Callable[[], object]) -> int:
    """How often the host waits for the GPU, as torch's own debug mode notices it."""
    with contextlib.ExitStack() as stack:
        stack.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        function()
    return sum("synchroniz" in str(warning.message) for warning in caught)
