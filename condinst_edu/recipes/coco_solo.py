"""COCO: SOLO and Decoupled SOLO, trained as mmdetection trains its published models.

    torchrun --nproc-per-node 8 -m condinst_edu.cli train coco-solo-r50-1x --device cuda

Batches of 16 images, SGD at 0.01, 500 iterations of warm-up, no clipping of gradients; 12 epochs (1x, short side 800,
steps after 8 and 11) or 36 (3x, six short sides from 640 to 800, steps after 27 and 33). ResNets start from
torchvision's ImageNet weights and train scale and shift of their batch norms, whose statistics stay fixed. Two things
differ: normalisation layers have no weight decay here, and the number of positive cells that the losses are divided by
is that of all processes. None of these recipes has been run to its end here.
"""

from typing import Any

from condinst_edu.engine.recipe import Recipe
from condinst_edu.official_solo import LIGHT_RANGES

ITERATIONS = {12: 88_000, 36: 264_000}  # COCO has 117 266 training images with an object, 7329 batches


def coco_solo(
    model: str, epochs: int, depth: int = 50, model_args: dict[str, Any] | None = None, **changes: Any
) -> Recipe:
    """SOLO ("solo") or Decoupled SOLO ("decoupled-solo") on a ResNet, for 12 or 36 epochs."""
    iterations = ITERATIONS[epochs]
    backbone = {"backbone": f"resnet{depth}", "backbone_options": {"weights": "IMAGENET1K_V1", "norm": "fixed_bn"}}
    settings: dict[str, Any] = {
        "iterations": iterations,
        "milestones": (8 / 12, 11 / 12) if epochs == 12 else (27 / 36, 33 / 36),
        "warmup": 500 / iterations,
        "warmup_factor": 0.001 if epochs == 12 else 1 / 3,
        "workers": 4,
        **({"short_sides": (800,)} if epochs == 12 else {}),
    }
    return Recipe(model=model, model_args={**backbone, **(model_args or {})}, **{**settings, **changes})  # type: ignore[arg-type]


def coco_solo_r50_1x() -> Recipe:
    """SOLO, ResNet-50, 1x."""
    return coco_solo("solo", 12)


def coco_solo_r50_3x() -> Recipe:
    """SOLO, ResNet-50, 3x."""
    return coco_solo("solo", 36)


def coco_solo_r101_3x() -> Recipe:
    """SOLO, ResNet-101, 3x. No model of mmdetection's is published."""
    return coco_solo("solo", 36, depth=101)


def coco_decoupled_solo_r50_1x() -> Recipe:
    """Decoupled SOLO, ResNet-50, 1x."""
    return coco_solo("decoupled-solo", 12)


def coco_decoupled_solo_r50_3x() -> Recipe:
    """Decoupled SOLO, ResNet-50, 3x."""
    return coco_solo("decoupled-solo", 36)


def coco_decoupled_solo_r101_3x() -> Recipe:
    """Decoupled SOLO, ResNet-101, 3x. No model of mmdetection's is published."""
    return coco_solo("decoupled-solo", 36, depth=101)


def coco_decoupled_solo_light_r50_3x() -> Recipe:
    """Decoupled light SOLO, ResNet-50, 3x: one mask branch of four convolutions, short sides 352 to 512."""
    light: dict[str, Any] = {"ranges": LIGHT_RANGES, "head": {"light": True, "convs": 4}}
    sizes: dict[str, Any] = {"short_sides": tuple(range(352, 513, 32)), "max_size": 852, "test_short_side": 512}
    return coco_solo("decoupled-solo", 36, model_args=light, **sizes)
