"""Recipes that a laptop without a GPU trains in minutes, on the generated shapes (`condinst-edu data shapes`)."""

import dataclasses
from pathlib import Path
from typing import Any

from condinst_edu.engine.recipe import Recipe


def tiny_model() -> dict[str, Any]:
    """Arguments that FCOS and CondInst share at this size: objects of 18 to 54 pixels in images of 128."""
    return {
        "backbone": "tiny",
        "backbone_options": {"widths": (16, 24, 48, 64, 96)},
        "levels": (3, 4, 5),
        "channels": 48,
        "ranges": (32, 64),
        "head": {"tower_convs": 2, "norm": "gn"},
        "score_threshold": 0.02,
    }


def shapes_fcos() -> Recipe:
    """Tiny FCOS: boxes alone."""
    return Recipe(
        model="fcos",
        model_args=tiny_model(),
        data=Path("data/shapes-full"),
        train_images="train",
        train_json="annotations/instances_train.json",
        val_images="val",
        val_json="annotations/instances_val.json",
        cache=True,
        workers=0,
        short_sides=(),
        test_short_side=None,
        iterations=3000,
        batch_size=8,
        optimizer="adamw",
        lr=5e-3,
        clip=5.0,
        schedule="cosine",
        warmup=0.15,
        save_every=500,
    )


def shapes_condinst() -> Recipe:
    """Tiny CondInst: the demo's model, 0.7 M parameters."""
    model_args = {
        **tiny_model(),
        "levels": (2, 3, 4, 5),
        "head_from": 3,
        "bottom": {"channels": 32, "convs": 2},  # on P2: masks at stride 2
        "mask_limit": 10,
    }
    return dataclasses.replace(shapes_fcos(), model="condinst", model_args=model_args)


def shapes_blendmask() -> Recipe:
    """Tiny BlendMask, 0.7 M parameters: 4 bases at stride 2, attention of 7x7, masks of 28x28."""
    model_args = {
        **tiny_model(),
        "levels": (2, 3, 4, 5),
        "head_from": 3,
        "bases": {"channels": 32, "convs": 1},  # on P2, upsampled: the resolution of CondInst's masks
        "attention": 7,
        "size": 28,
        "semantic": False,
    }
    return dataclasses.replace(shapes_fcos(), model="blendmask", model_args=model_args)


def shapes_dr1mask() -> Recipe:
    """Tiny DR1Mask, 0.7 M parameters: 16 channels at stride 2, factored attention of 7x7, masks of 28x28."""
    model_args = {
        **tiny_model(),
        "levels": (2, 3, 4, 5),
        "head_from": 3,  # P2 is merged by a plain convolution: no tower gives it factors
        "head": {"tower_convs": 2, "norm": "gn", "learned_scales": True},
        "basis": {"width": 16},
        "attention": "factored",
        "attention_size": 7,
        "size": 28,
        "mask_limit": 10,
    }
    return dataclasses.replace(shapes_fcos(), model="dr1mask", model_args=model_args)


def panoptic_shapes(recipe: Recipe, model_args: dict[str, Any]) -> Recipe:
    """A panoptic model that is trained as an instance model is, on the shapes' panoptic files."""
    return dataclasses.replace(
        recipe,
        model=f"panoptic-{recipe.model}",  # type: ignore[arg-type]
        # The same part of the image as 64 x 64 pixels of one of COCO's
        model_args={**recipe.model_args, "num_things": 5, "fusion": {"min_stuff": 200}, **model_args},
        train_json="annotations/panoptic_train.json",
        val_json="annotations/panoptic_val.json",
        train_panoptic="panoptic_train",
        val_panoptic="panoptic_val",
    )


def shapes_panoptic_condinst() -> Recipe:
    """Tiny CondInst with a semantic branch: things and stuff of the shapes' landscapes."""
    condinst = shapes_condinst()
    return panoptic_shapes(condinst, {"bottom": {**condinst.model_args["bottom"], "first": 0}})


def shapes_panoptic_dr1mask() -> Recipe:
    """Tiny DR1Mask with the panoptic layer, a vector for each instance."""
    return panoptic_shapes(shapes_dr1mask(), {"attention": "vector"})


def shapes_panoptic_adaptis() -> Recipe:
    """Tiny AdaptIS with stuff: the toy problem's network at half the size; the greedy algorithm fills the picture."""
    model_args = {
        "num_things": 5,
        "backbone": "unet",
        "backbone_options": {"width": 16, "max_width": 64, "finest": 1},
        "branch_width": 16,
        "points": 6,
        "propose": "branch",
        "proposal_threshold": 0.15,  # one point in five is positive: sure of nothing, the branch says 0.2
        "limit": 40,
        "min_stuff": 200,
    }
    recipe = panoptic_shapes(shapes_fcos(), {})
    return dataclasses.replace(recipe, model="adaptis", model_args=model_args, batch_size=4)


def shapes_mask_rcnn() -> Recipe:
    """Tiny Mask R-CNN, to compare with: the same backbone, torchvision's own heads."""
    shared = ("backbone", "backbone_options", "channels", "score_threshold")
    model_args = {key: value for key, value in tiny_model().items() if key in shared}
    return dataclasses.replace(shapes_fcos(), model="mask-rcnn", model_args=model_args, iterations=1500, lr=3e-3)


def shapes_solo() -> Recipe:
    """Tiny SOLO: grids of 12 and 8 cells a side for the smaller and the larger shapes, masks at strides 2 and 4."""
    shared = ("backbone", "backbone_options", "channels")
    model_args = {
        **{key: value for key, value in tiny_model().items() if key in shared},
        "levels": (2, 3),
        "strides": (4, 8),
        "grids": (12, 8),
        "ranges": ((1, 36), (28, 128)),
        "head": {"convs": 2, "channels": 48},
    }
    return dataclasses.replace(shapes_fcos(), model="solo", model_args=model_args)


def shapes_decoupled_solo() -> Recipe:
    """Tiny Decoupled SOLO: a map for each row and each column in place of one for each cell."""
    return dataclasses.replace(shapes_solo(), model="decoupled-solo")
