"""BlendMask on COCO, trained as the official configurations tell; see `condinst_edu.recipes.coco` for what they share.

Three things differ from the official code beside what is said there:

- The semantic task learns from the instance annotations, the smallest object on top; the official one from COCO's
  panoptic annotations of things.
- Targets of the mask loss are cropped from masks drawn at the image's size; the official code draws the polygons
  within each box, which is finer for small objects.
- SyncBN, there of the bases alone, covers the semantic task's batch norms too.

None of these recipes has been run to its end here.
"""

from typing import Any

from condinst_edu.engine.recipe import Recipe
from condinst_edu.recipes.coco import LEVELS, coco, resnet


def coco_blendmask_r50_1x() -> Recipe:
    """BlendMask, ResNet-50, 1x."""
    return coco("blendmask", "1x", resnet(50), sync_bn=True)


def coco_blendmask_r50_3x() -> Recipe:
    """BlendMask, ResNet-50, 3x."""
    return coco("blendmask", "3x", resnet(50), sync_bn=True)


def coco_blendmask_r101_3x() -> Recipe:
    """BlendMask, ResNet-101, 3x."""
    return coco("blendmask", "3x", resnet(101), sync_bn=True)


def quick() -> dict[str, Any]:
    """One tower of three convolutions for classes and boxes, two instead of three before the bases' upsampling."""
    return {"head": {"shared_towers": True, "tower_convs": 3}, "bases": {"convs": 2}}


def coco_blendmask_550_r50_3x() -> Recipe:
    """BlendMask, ResNet-50, P3 to P6, short sides 440 to 550, 550 in evaluation, 3x."""
    levels = {"levels": (3, 4, 5, 6), "ranges": (64, 128, 256)}
    sizes = {"short_sides": tuple(range(440, 551, 22)), "max_size": 916, "test_short_side": 550}
    return coco("blendmask", "3x", {**resnet(50), **levels, **quick()}, sync_bn=True, **sizes)


def coco_blendmask_rt_r50_4x_shtw() -> Recipe:
    """Real-time BlendMask, ResNet-50 with batch norms that are trained, short sides 256 to 608, 512 in evaluation, 4x.

    head.norm=bn_per_level gives the official variant with batch norm in the tower.
    """
    backbone = resnet(50, norm="bn", frozen_stages=0)
    sizes = {"short_sides": tuple(range(256, 609, 32)), "max_size": 900, "test_short_side": 512, "test_max_size": 736}
    return coco("blendmask", "4x", {**backbone, **LEVELS, **quick()}, sync_bn=True, **sizes)
