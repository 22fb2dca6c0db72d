"""Recipes for AdaptIS's toy problem, on images that are drawn while it trains (`condinst_edu.datasets.bacteria`).

Those of the paper's size want a GPU: condinst-edu train bacteria-adaptis-paper --device cuda. We have not run them in
full. The paper says nothing of batch size, points or schedule; these are as in the official code.
"""

import dataclasses
from typing import Any

from condinst_edu.engine.recipe import Recipe


def bacteria_adaptis() -> Recipe:
    """Tiny AdaptIS for ten minutes of a laptop: 0.5 M parameters, masks at half size."""
    return Recipe(
        model="adaptis",
        model_args={
            "backbone": "unet",
            "backbone_options": {"width": 16, "max_width": 64, "finest": 1},
            "branch_width": 16,
            "points": 6,
            "limit": 50,
        },
        drawn="bacteria",
        workers=0,
        short_sides=(),
        test_short_side=None,
        vertical_flip=0.5,
        iterations=5000,
        batch_size=4,
        optimizer="adamw",
        lr=8e-3,
        clip=5.0,
        schedule="cosine",
        warmup=0.1,
        save_every=1000,
    )


def bacteria_adaptis_paper() -> Recipe:
    """AdaptIS as in Table 1: 140 epochs of 10 000 images, Adam from 5e-4 on. Source: adaptis:table-1.

    Then the proposal branch: --start runs/.../model.safetensors --set stage=proposals --set points=32, 10 epochs.
    """
    model_args: dict[str, Any] = {"backbone": "unet", "backbone_options": {"width": 32, "max_width": 512}}
    return dataclasses.replace(
        bacteria_adaptis(),
        model_args={**model_args, "head": {"distance": True}, "points": 12},
        workers=8,
        iterations=140 * 10_000 // 14,
        batch_size=14,
        lr=5e-4,
        beta2=0.999,
        weight_decay=0.0,
        clip=0.0,
        warmup=0.0,
        save_every=5000,
        eval_every=20_000,
    )


def bacteria_v2_adaptis_paper() -> Recipe:
    """The same on the second version: 128 x 128 pixels, 12 to 52 cells; 160 epochs of 10 000 draws (official)."""
    return dataclasses.replace(bacteria_adaptis_paper(), drawn="bacteria-v2", iterations=160 * 10_000 // 14)


def bacteria_mask_rcnn_paper() -> Recipe:
    """Mask R-CNN as in Table 1: ResNet-50 from ImageNet, images enlarged to 384 pixels, 55 epochs of SGD.

    The paper says nothing of its batch size: 8 here. Source: adaptis:table-1.
    """
    return dataclasses.replace(
        bacteria_adaptis(),
        model="mask-rcnn",
        model_args={
            "backbone": "resnet50",
            "backbone_options": {"weights": "IMAGENET1K_V1"},
            "levels": (2, 3, 4, 5, 6),
            "channels": 256,
            "anchor_sizes": (8,),
            "proposals": 1000,
            "samples": 512,
            "box_units": 1024,
            "mask_channels": 256,
            "mask_convs": 4,
        },
        workers=8,
        short_sides=(384,),
        test_short_side=384,
        iterations=55 * 10_000 // 8,
        batch_size=8,
        optimizer="sgd",
        lr=0.001,
        clip=0.0,
        schedule="step",
        milestones=(35 / 55, 45 / 55),
        warmup=1000 / (55 * 10_000 // 8),
        save_every=5000,
    )
