"""AdaptIS on photographs, with panoptic files: Cityscapes, Mapillary Vistas, COCO (adaptis:table-2 to adaptis:table-6).

    torchrun --nproc-per-node 8 -m condinst_edu.cli train coco-adaptis-rx101 --device cuda

Epochs, batches, crops, sizes, points, T, radius, rates and milestones are the paper's. The proposal branch is trained
afterwards, 10 epochs (COCO: 73 750 iterations) with 48 points of one object:

    ... coco-adaptis-rx101 --start WEIGHTS --set stage=proposals --set points=48 --iterations 73750 --out runs/proposals

What the paper says and is otherwise here: Cityscapes has no jitter of contrast, brightness and colour; Mapillary's long
sides of 500 to 2200 are short sides of 375 to 1650, the same in images of 4 to 3; sides come in steps.
What it leaves open: Cityscapes is mirrored as the others are; one point in five of the proposal branch is positive (the
official labels: --set soft_labels=True); an image has at most 500 proposals, the semantic loss a weight of 0.75, and
the coordinates a third map, all as in the official code; ImageNet weights are torchvision's IMAGENET1K_V1, and
ResNeXt-101 is its 32x8d. The tables have ResNet-50 and ResNet-101 on Mapillary and COCO too, where the text says that
only ResNeXt-101 was trained.
`condinst-edu data cityscapes` writes Cityscapes' panoptic files; Mapillary's download (version 1.2) has them, and
`condinst-edu data mapillary` writes them where they are missing (beside version 2.0 they lie in training/v1.2:
--train-json, --train-panoptic and so on say so). None of these recipes has been run to its end here.
"""

from pathlib import Path
from typing import Any

from condinst_edu.engine.recipe import Recipe
from condinst_edu.recipes.panoptic import PANOPTIC_FILES

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def adaptis(
    name: str,
    num_things: int,
    points: int,
    threshold: float,
    images: int,
    epochs: int,
    drops: tuple[int, int],
    batch_size: int,
    **fields: Any,
) -> Recipe:
    """What all have in common: Adam, 5e-5 for the ResNet and 1e-4 for all else, R = 280, tested with the mirror image.

    threshold: T; images: in an epoch; drops: epochs after which the rate is a tenth.
    """
    model_args: dict[str, Any] = {
        "num_things": num_things,
        "backbone": name,
        "backbone_options": {"weights": "IMAGENET1K_V1"},
        "head": {"width": 128, "radius": 280.0, "distance": True},
        "branch_width": 192,
        "points": points,
        "propose": "branch",
        "threshold": threshold,
        "limit": 500,
        "flip": True,
        **IMAGENET,
    }
    return Recipe(
        model="adaptis",
        model_args=model_args,
        workers=8,
        iterations=epochs * images // batch_size,
        batch_size=batch_size,
        optimizer="adamw",
        lr=1e-4,
        backbone_lr=0.5,
        beta2=0.999,
        weight_decay=0.0,
        milestones=tuple(epoch / epochs for epoch in drops),
        warmup=0.0,
        save_every=2000,
        **fields,
    )


RESNEXT = "resnext101_32x8d"


def cityscapes_adaptis(backbone: str) -> Recipe:
    """260 epochs of 2975 images, crops of 400 x 800, images of 0.2 to 1.2 times their 1024 x 2048 pixels."""
    return adaptis(
        backbone,
        8,
        6,
        0.4,
        2975,
        260,
        (240, 255),
        8,
        data=Path("data/cityscapes"),
        train_images="leftImg8bit/train",
        train_json="annotations/panoptic_train.json",
        train_panoptic="annotations/panoptic_train",
        val_images="leftImg8bit/val",
        val_json="annotations/panoptic_val.json",
        val_panoptic="annotations/panoptic_val",
        short_sides=tuple(range(205, 1230, 16)),
        max_size=4096,
        crop=(400, 800),
        test_short_side=1024,
    )


def cityscapes_adaptis_r50() -> Recipe:
    """AdaptIS on Cityscapes, ResNet-50. Source: adaptis:table-2."""
    return cityscapes_adaptis("resnet50")


def cityscapes_adaptis_r101() -> Recipe:
    """AdaptIS on Cityscapes, ResNet-101. Source: adaptis:table-2."""
    return cityscapes_adaptis("resnet101")


def cityscapes_adaptis_rx101() -> Recipe:
    """AdaptIS on Cityscapes, ResNeXt-101. Source: adaptis:table-2."""
    return cityscapes_adaptis(RESNEXT)


def mapillary_adaptis(backbone: str) -> Recipe:
    """65 epochs of 18 000 images, crops of 400 x 800, long sides of 500 to 2200; tested at long sides of 2000."""
    return adaptis(
        backbone,
        37,
        6,
        0.35,
        18_000,
        65,
        (50, 60),
        8,
        data=Path("data/mapillary"),
        train_images="training/images",
        train_json="training/panoptic/panoptic_2018.json",
        train_panoptic="training/panoptic",
        val_images="validation/images",
        val_json="validation/panoptic/panoptic_2018.json",
        val_panoptic="validation/panoptic",
        short_sides=tuple(range(375, 1651, 25)),
        max_size=2200,
        crop=(400, 800),
        test_short_side=2000,  # that of a square: the long side decides
        test_max_size=2000,
    )


def mapillary_adaptis_r50() -> Recipe:
    """AdaptIS on Mapillary Vistas, ResNet-50. Source: adaptis:table-3."""
    return mapillary_adaptis("resnet50")


def mapillary_adaptis_r101() -> Recipe:
    """AdaptIS on Mapillary Vistas, ResNet-101. Source: adaptis:table-3."""
    return mapillary_adaptis("resnet101")


def mapillary_adaptis_rx101() -> Recipe:
    """AdaptIS on Mapillary Vistas, ResNeXt-101. Source: adaptis:table-3."""
    return mapillary_adaptis(RESNEXT)


def coco_adaptis(backbone: str) -> Recipe:
    """20 epochs of about 118 000 images, crops of 544 x 544, short sides of 350 to 700, 8 points; tested at 600."""
    return adaptis(
        backbone,
        80,
        8,
        0.35,
        118_000,
        20,
        (15, 19),
        16,
        **PANOPTIC_FILES,
        short_sides=tuple(range(350, 701, 10)),
        max_size=4096,  # the paper has no limit
        crop=(544, 544),
        test_short_side=600,
    )


def coco_adaptis_r50() -> Recipe:
    """AdaptIS on COCO, ResNet-50. Source: adaptis:table-5."""
    return coco_adaptis("resnet50")


def coco_adaptis_r101() -> Recipe:
    """AdaptIS on COCO, ResNet-101. Source: adaptis:table-5."""
    return coco_adaptis("resnet101")


def coco_adaptis_rx101() -> Recipe:
    """AdaptIS on COCO, ResNeXt-101. Source: adaptis:table-5."""
    return coco_adaptis(RESNEXT)
