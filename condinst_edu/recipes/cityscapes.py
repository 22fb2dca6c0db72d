"""Cityscapes: CondInst on its eight classes of objects, fine annotations (condinst:table-8).

    condinst-edu data cityscapes --root data/cityscapes
    torchrun --nproc-per-node 8 -m condinst_edu.cli train cityscapes-condinst-r50 --device cuda

24 000 iterations of 8 images, one a GPU, a tenth of the rate from 18 000 on, short sides 800 to 1024, images of 1024 x
2048 in evaluation, masks at half the image's resolution: the paper's section 3.8, with warm-up and longest side as in
Detectron2, which it follows. AP is COCO's, as in the paper. The official code has no Cityscapes configuration.
"""

import dataclasses
from pathlib import Path
from typing import Any

from condinst_edu.engine.recipe import Recipe, adopt_model
from condinst_edu.official import model_of
from condinst_edu.recipes.coco import BIFPN, resnet, schedule

# Masks at half the image's resolution; the best 64 locations, whatever the weights to start from were trained with.
MASKS = {"factor": 4, "sampling": "score", "mask_limit": 64}


def cityscapes(model_args: dict[str, Any], start: str | None = None) -> Recipe:
    """What all have in common."""
    return Recipe(
        model="condinst",
        model_args={**model_args, **MASKS},
        start=start,
        data=Path("data/cityscapes"),
        train_images="leftImg8bit/train",
        train_json="annotations/instances_train.json",
        val_images="leftImg8bit/val",
        val_json="annotations/instances_val.json",
        workers=4,
        short_sides=tuple(range(800, 1025, 32)),
        test_short_side=1024,
        max_size=2048,
        batch_size=8,
        **schedule(24_000, 18_000),
    )


def cityscapes_condinst_r50() -> Recipe:
    """CondInst on Cityscapes, ResNet-50."""
    return cityscapes(resnet(50))


def cityscapes_condinst_r50_sem() -> Recipe:
    """CondInst on Cityscapes, ResNet-50, with the semantic task."""
    return cityscapes({**resnet(50), "semantic": True})


def from_official(name: str) -> Recipe:
    """A recipe that starts from one of the authors' COCO models, whose network it then has."""
    start = f"official:{name}"
    return adopt_model(cityscapes({}, start), **model_of(start))


def cityscapes_condinst_r50_coco() -> Recipe:
    """CondInst on Cityscapes, ResNet-50, from a COCO model.

    The paper does not say which one. This is the authors' 3x, which is fetched; `--start FILE` takes your own.
    """
    return from_official("CondInst_MS_R_50_3x")


def cityscapes_condinst_r50_coco_sem() -> Recipe:
    """CondInst on Cityscapes, ResNet-50, from the authors' COCO model, both with the semantic task."""
    return from_official("CondInst_MS_R_50_3x_sem")


def cityscapes_condinst_dcn101_coco_sem() -> Recipe:
    """CondInst on Cityscapes, deformable ResNet-101 and BiFPN, with the semantic task, from a COCO model.

    That one was not published: train coco-condinst-r101-dcn-bifpn-3x-sem first.
    """
    backbone = resnet(101, weights=None, deformable=(3, 4, 5), deformable_interval=3)
    start = "runs/coco-condinst-r101-dcn-bifpn-3x-sem/model.safetensors"
    return dataclasses.replace(cityscapes({**backbone, **BIFPN, "semantic": True}, start), sync_bn=True)
