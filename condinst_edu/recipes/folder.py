"""Recipes for a COCO-format folder of your own, small enough for one machine."""

from pathlib import Path

from condinst_edu.engine.recipe import Recipe


def folder_condinst() -> Recipe:
    """CondInst for a small COCO-format folder of your own: ResNet-18 from ImageNet weights."""
    return Recipe(
        model="condinst",
        model_args={
            "backbone": "resnet18",
            "backbone_options": {"weights": "DEFAULT", "norm": "bn", "frozen_stages": 0},
            "channels": 96,
            "levels": (3, 4, 5, 6),
            "ranges": (64, 128, 256),
            "head": {"tower_convs": 2},
            "bottom": {"channels": 64, "convs": 2},
        },
        data=Path("data/my-folder"),
        train_images="images",
        train_json="annotations/train.json",
        val_images="images",
        val_json="annotations/val.json",
        cache=True,
        short_sides=(384, 416, 448, 480),
        test_short_side=448,
        iterations=1500,
        batch_size=4,
        optimizer="adamw",
        lr=1e-3,
        clip=5.0,
        schedule="cosine",
        warmup=0.1,
        save_every=250,
    )
