"""`condinst-edu bench solo`: what decoupling saves, in memory and time, with ResNet-50 and the papers' grids.

Three groups, each with SOLO as the reference, then Decoupled SOLO and its light form: the head alone, with the size of
the mask maps that it puts out; inference of one image, from its pixels to binary masks; and a training step. Memory is
the most bytes of tensors that were alive at once. Weights are random; a threshold lets equally many cells of each model
become candidates. The slides say: equal accuracy, considerably less memory in training and testing.
"""

from functools import partial
from typing import Any

import torch
from rich.progress import Progress

from condinst_edu.bench import Bench, Group, PeakMemory, Variant, race
from condinst_edu.bench_targets import random_target
from condinst_edu.engine.train import step
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size, make_batch
from condinst_edu.official_solo import solo_recipe
from condinst_edu.solo import SOLO, DecoupledSOLO, Outputs, points_nms

NAMES = {
    "SOLO": "solo_r50_fpn_3x_coco",
    "Decoupled SOLO": "decoupled-solo_r50_fpn_3x_coco",
    "Decoupled light SOLO": "decoupled-solo-light_r50_fpn_3x_coco",
}
OBJECTS = 7  # in an image, as COCO has on average
CANDIDATES = 100
RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_solo(runs, progress, options.size, options.batch)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    head, inference, training = groups
    plain, decoupled = head["SOLO"].facts, head["Decoupled SOLO"].facts
    more = [group["SOLO"].facts["memory_gb"] / group["Decoupled SOLO"].facts["memory_gb"] for group in groups[1:]]
    return (
        f"Decoupled SOLO puts out {decoupled['maps']:g} mask maps instead of {plain['maps']:g}, "
        f"{plain['output_mb'] / decoupled['output_mb']:.1f} times fewer bytes. SOLO takes {more[0]:.2f} times its "
        f"memory in inference and {more[1]:.2f} times in training. Decoupled SOLO is "
        f"{inference['Decoupled SOLO'].speedup:.2f} times as fast in inference and "
        f"{training['Decoupled SOLO'].speedup:.2f} times in training."
    )


def full_size_models() -> dict[str, SOLO]:
    """mmdetection's models, with random weights."""
    models = {}
    for name, official in NAMES.items():
        recipe = solo_recipe(official)
        models[name] = (SOLO if recipe.model == "solo" else DecoupledSOLO)(**recipe.model_args)
    return models


def bench_solo(runs: int, progress: Progress, size: Size = (480, 640), batch: int = 2) -> list[Group]:
    """Times and memory. size: (height, width) of all images; batch: images of a training step.

    Errors: UserError where size or batch are not positive.
    """
    if min(*size, batch) < 1:
        raise UserError(f"--batch and --size are positive, not {batch} and {size}")
    torch.manual_seed(0)
    models = full_size_models()
    with torch.inference_mode():
        groups = inference_groups(models, runs, progress, size)
    images = [torch.rand(3, *size) for _ in range(batch)]
    targets: list[dict[str, Any]] = [random_target(OBJECTS, size, 1, seed) for seed in range(batch)]
    steps = {
        name: partial(step, model.train(), torch.optim.SGD(trained(model), lr=1e-5), 0.0, images, targets)
        for name, model in models.items()
    }
    variants = race("training", steps, runs, progress)
    for variant in variants:
        with PeakMemory() as memory:
            steps[variant.name]()
        variant.facts = {"memory_gb": memory.peak / 2**30}
    what = f"a step of {batch} images of {size[0]}x{size[1]}, {OBJECTS} objects each"
    return [*groups, Group("training", what, variants)]


def trained(model: SOLO) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def inference_groups(models: dict[str, SOLO], runs: int, progress: Progress, size: Size) -> list[Group]:
    """The head on the pyramid of one image, and the whole way to masks."""
    image, heads, wholes = torch.rand(3, *size), {}, {}
    for name, model in models.items():
        model.eval()
        batch = make_batch([image], model.mean, model.std, model.divisor)
        padded = (batch.images.shape[2], batch.images.shape[3])
        heads[name] = partial(model.head, model.split(model.pyramid(batch.images), padded))
        wholes[name] = partial(model, [image])
        calibrate(model, heads[name]())
    head = race("head", heads, runs, progress)
    for variant in head:
        outputs = heads[variant.name]()
        maps = [m for level in outputs.maps for m in level]
        variant.facts = {"maps": sum(m.shape[1] for m in maps), "output_mb": sum(m.nbytes for m in maps) / 1e6}
    whole: list[Variant] = race("inference", wholes, runs, progress)
    for variant in whole:
        with PeakMemory() as memory:
            found = wholes[variant.name]()[0]
        variant.facts = {"memory_gb": memory.peak / 2**30, "masks": len(found["masks"])}
    on = f"one image of {size[0]}x{size[1]}"
    return [
        Group("head", f"class logits and mask maps, {on}", head),
        Group("inference", f"pixels to masks, {on}", whole),
    ]


def calibrate(model: SOLO, outputs: Outputs) -> None:
    """Let about CANDIDATES cells of these outputs become candidates, all of them results with large masks."""
    scores = torch.cat([points_nms(logits.sigmoid()).flatten() for logits in outputs.logits])
    model.score_threshold = scores.topk(CANDIDATES + 1).values[-1].item()
    model.min_score = 0.0
    for name, parameter in model.head.named_parameters():
        if "_maps." in name and name.endswith("bias"):
            torch.nn.init.constant_(parameter, 1)
