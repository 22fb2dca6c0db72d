"""COCO: the models of the CondInst papers, FCOS and the real-time models, each trained as its paper tells.

    torchrun --nproc-per-node 8 -m condinst_edu.cli train coco-condinst-r50-1x --device cuda

Where the official code (AdelaiDet) does otherwise than the paper, the docstrings say so. Two things differ everywhere:

- ResNets start from torchvision's ImageNet weights `IMAGENET1K_V1`, trained like those of the ResNet paper. The
  official ones start from MSRA's, which come from Caffe: they halve in a block's first 1x1 convolution, take blue,
  green, red in 0..255, and torchvision does not have them. `--start official:NAME` gives a whole model in that form.
- Masks: the best 64 positive locations of an image by score, as in the journal version. The official code takes all,
  up to 500 of a GPU at random, in every configuration.

The official schedules, which the papers give in part: 1000 iterations of warm-up from a thousandth of the rate, and
steps at 60 000 and 80 000 of 90 000 (1x), 210 000 and 250 000 of 270 000 (3x), 300 000 and 340 000 of 360 000 (4x).
None of these recipes has been run to its end here.
"""

import dataclasses
from typing import Any

from condinst_edu.engine.recipe import Recipe

WEIGHTS = "IMAGENET1K_V1"


def resnet(depth: int, **options: Any) -> dict[str, Any]:
    """Model arguments of an ImageNet ResNet, its batch norms fixed, stem and first stage not trained."""
    return {"backbone": f"resnet{depth}", "backbone_options": {"weights": WEIGHTS, **options}}


def schedule(iterations: int, *steps: int) -> dict[str, Any]:
    """Length, steps and 1000 iterations of warm-up as a recipe has them: shares of the whole."""
    milestones = tuple(step / iterations for step in steps)
    return {"iterations": iterations, "milestones": milestones, "warmup": 1000 / iterations}


SCHEDULES = {
    "1x": schedule(90_000, 60_000, 80_000),
    "3x": schedule(270_000, 210_000, 250_000),
    "4x": schedule(360_000, 300_000, 340_000),
}


def coco(model: str, length: str, model_args: dict[str, Any], **changes: Any) -> Recipe:
    """SGD at 0.01 on 16 images, short sides 640 to 800, mirrored (condinst:table-6): a recipe's own defaults."""
    settings: dict[str, Any] = {"model": model, "model_args": model_args, "workers": 4, **SCHEDULES[length]}
    return Recipe(**{**settings, **changes})


# ---------------------------------------------------------------------------------------------------------------- FCOS


def coco_fcos_r50_1x() -> Recipe:
    """FCOS, ResNet-50, 1x.

    One scale, as in the official configuration; all other official models are trained at several.
    """
    return coco("fcos", "1x", resnet(50), short_sides=(800,))


# ------------------------------------------------------------------------------------------------------------ CondInst


def coco_condinst_r50_1x() -> Recipe:
    """CondInst, ResNet-50, 1x: the model of all ablations."""
    return coco("condinst", "1x", resnet(50))


def coco_condinst_r50_1x_800() -> Recipe:
    """CondInst, ResNet-50, 1x, without scale augmentation (Table 6's first row of CondInst)."""
    return dataclasses.replace(coco_condinst_r50_1x(), short_sides=(800,))


def coco_condinst_r50_3x() -> Recipe:
    """CondInst, ResNet-50, 3x."""
    return coco("condinst", "3x", resnet(50))


def coco_condinst_r50_3x_sem() -> Recipe:
    """CondInst, ResNet-50, 3x, with the semantic task."""
    return coco("condinst", "3x", {**resnet(50), "semantic": True})


def coco_condinst_r101_3x() -> Recipe:
    """CondInst, ResNet-101, 3x."""
    return coco("condinst", "3x", resnet(101))


def coco_condinst_r101_3x_sem() -> Recipe:
    """CondInst, ResNet-101, 3x, with the semantic task."""
    return coco("condinst", "3x", {**resnet(101), "semantic": True})


BIFPN = {"neck": "bifpn", "channels": 160}


def coco_condinst_r101_bifpn_3x() -> Recipe:
    """CondInst, ResNet-101 and BiFPN, 3x.

    The paper has it with the semantic task only. SyncBN is the official BiFPN's; here it covers the bottom branch too,
    whose batch norms are each GPU's own in the official code.
    """
    return coco("condinst", "3x", {**resnet(101), **BIFPN}, sync_bn=True)


def coco_condinst_r101_bifpn_3x_sem() -> Recipe:
    """CondInst, ResNet-101 and BiFPN, 3x, with the semantic task (SyncBN as in the recipe without it)."""
    return coco("condinst", "3x", {**resnet(101), **BIFPN, "semantic": True}, sync_bn=True)


def coco_condinst_r101_dcn_bifpn_3x_sem() -> Recipe:
    """CondInst, ResNet-101 with deformable convolutions and BiFPN, 3x, with the semantic task.

    The paper does not say which convolutions are deformable, and this model was not published. Ours are in every third
    block of C3, C4 and C5, as in the official BlendMask with a deformable ResNet-101.
    """
    backbone = resnet(101, deformable=(3, 4, 5), deformable_interval=3)
    return coco("condinst", "3x", {**backbone, **BIFPN, "semantic": True}, sync_bn=True)


def coco_condinst_eccv_r50_1x() -> Recipe:
    """CondInst of the conference version, ResNet-50, 1x: bottom branch on P3 alone, masks at half the image's size.

    Four 3x3 convolutions in all (condinst-eccv:mask-branch), logits upsampled by 4, and positive locations taken at
    random: the journal version tells of 500 of a GPU, "250 per image" with two images on it. The published
    configurations have neither this branch nor this size.
    """
    model_args = {
        **resnet(50),
        "bottom": {"num_levels": 1, "convs": 3},  # and the one before the sum
        "factor": 4,
        "sampling": "random",
        "mask_limit": 250,
    }
    return coco("condinst", "1x", model_args)


# ----------------------------------------------------------------------------------------------------------- real time

LEVELS = {"levels": (3, 4, 5), "ranges": (64, 128)}
DLA34 = {"backbone": "timm:dla34", "backbone_options": {"pretrained": True}}
SHARED = {"head": {"shared_towers": True}}


def real_time(model: str, model_args: dict[str, Any]) -> Recipe:
    """Short sides 256 to 608, 512 in evaluation, no P6 and P7, SyncBN, 4x (condinst:table-7).

    The longest sides, 900 and 736 in evaluation, are the official ones. The towers keep their group norm, as there;
    head.norm=bn_per_level gives the official variants with batch norm. A ResNet trains its batch norms, but for stem
    and first stage; DLA-34 trains all.
    """
    sizes = {"short_sides": tuple(range(256, 609, 32)), "max_size": 900, "test_short_side": 512, "test_max_size": 736}
    return coco(model, "4x", {**model_args, **LEVELS}, sync_bn=True, **sizes)


def coco_fcos_rt_dla34_4x() -> Recipe:
    """Real-time FCOS, DLA-34, 4x."""
    return real_time("fcos", DLA34)


def coco_fcos_rt_dla34_4x_shtw() -> Recipe:
    """Real-time FCOS, DLA-34, one tower for classes and boxes, 4x."""
    return real_time("fcos", {**DLA34, **SHARED})


def coco_fcos_rt_r50_4x() -> Recipe:
    """Real-time FCOS, ResNet-50, 4x."""
    return real_time("fcos", resnet(50, norm="bn"))


def coco_condinst_rt_dla34_4x() -> Recipe:
    """Real-time CondInst, DLA-34, 4x, with the semantic task. No official model is published."""
    return real_time("condinst", {**DLA34, "semantic": True})


def coco_condinst_rt_dla34_4x_shtw() -> Recipe:
    """Real-time CondInst, DLA-34, one tower for classes and boxes, 4x, with the semantic task."""
    return real_time("condinst", {**DLA34, **SHARED, "semantic": True})


def coco_condinst_rt_r50_4x_shtw() -> Recipe:
    """Real-time CondInst, ResNet-50, one tower, 4x, with the semantic task (the paper leaves its figures out)."""
    return real_time("condinst", {**resnet(50, norm="bn"), **SHARED, "semantic": True})
