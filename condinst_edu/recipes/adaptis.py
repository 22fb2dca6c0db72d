"""AdaptIS on photographs, with panoptic files: Cityscapes, Mapillary Vistas, COCO (adaptis:table-2 to adaptis:table-6).

    torchrun --nproc-per-node 2 -m condinst_edu.cli train cityscapes-adaptis-r50 --device cuda

Epochs, batches, crops, sizes, rates and milestones are the paper's, but for the jitter of colour on Cityscapes; the
proposal branch is trained afterwards, 10 epochs: --start runs/.../model.safetensors --set stage=proposals --set
points=48. `condinst-edu data cityscapes` writes Cityscapes' panoptic files; Mapillary's download (version 1.2) has
them, and `condinst-edu data mapillary` writes them where they are missing (beside version 2.0 they lie in
training/v1.2: --train-json, --train-panoptic and so on say so). None of these recipes has been run to its end here.
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
    """What all have in common. images: in an epoch; drops: epochs after which the rate is a tenth."""
    model_args: dict[str, Any] = {
        "num_things": num_things,
        "backbone": name,
        "backbone_options": {"weights": "DEFAULT"},
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


def cityscapes_adaptis_r50() -> Recipe:
    """AdaptIS on Cityscapes, ResNet-50: 260 epochs, crops of 400 x 800, scales 0.2 to 1.2. Source: adaptis:table-2."""
    return adaptis(
        "resnet50",
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
        short_sides=tuple(range(205, 1230, 32)),
        max_size=4096,
        crop=(400, 800),
        test_short_side=1024,
    )


def mapillary_adaptis_rx101() -> Recipe:
    """AdaptIS on Mapillary Vistas, ResNeXt-101: 65 epochs, long sides of 500 to 2200. Source: adaptis:table-3."""
    return adaptis(
        "resnext101_32x8d",
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
        short_sides=tuple(range(375, 1651, 75)),  # of the long sides 500 to 2200 in images of 4 to 3
        max_size=2200,
        crop=(400, 800),
        test_short_side=1500,
        test_max_size=2000,
    )


def coco_adaptis_rx101() -> Recipe:
    """AdaptIS on COCO, ResNeXt-101: 20 epochs, crops of 544 x 544, 8 points. Source: adaptis:table-5."""
    return adaptis(
        "resnext101_32x8d",
        80,
        8,
        0.35,
        118_000,
        20,
        (15, 19),
        16,
        **PANOPTIC_FILES,
        short_sides=tuple(range(350, 701, 50)),
        crop=(544, 544),
        test_short_side=600,
    )
