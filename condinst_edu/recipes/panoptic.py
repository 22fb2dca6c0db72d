"""COCO panoptic: CondInst with a semantic branch, as the paper's Table 9 has it (condinst:table-9).

    torchrun --nproc-per-node 8 -m condinst_edu.cli train coco-panoptic-condinst-r50-1x --device cuda

80 classes of things and 53 of stuff; schedules, sizes and batch are those of the instance models ("unless specified,
the same as in the instance segmentation task"), masks come from the panoptic annotations, so that none overlap.
`condinst-edu data coco --panoptic` brings them: JSON files, and beside each a folder of PNGs.
The authors did not publish this part of their code. None of these recipes has been run to its end here.
"""

from typing import Any

from condinst_edu.engine.recipe import Recipe
from condinst_edu.recipes.coco import coco, resnet

PANOPTIC_FILES = {
    "train_json": "annotations/panoptic_train2017.json",
    "train_panoptic": "annotations/panoptic_train2017",
    "val_json": "annotations/panoptic_val2017.json",
    "val_panoptic": "annotations/panoptic_val2017",
}


def coco_panoptic(length: str, model_args: dict[str, Any]) -> Recipe:
    """What all have in common."""
    return coco("panoptic-condinst", length, model_args, **PANOPTIC_FILES)


def coco_panoptic_condinst_r50_1x() -> Recipe:
    """Panoptic CondInst, ResNet-50, 1x."""
    return coco_panoptic("1x", resnet(50))


def coco_panoptic_condinst_r50_3x() -> Recipe:
    """Panoptic CondInst, ResNet-50, 3x."""
    return coco_panoptic("3x", resnet(50))


def coco_panoptic_condinst_r101_3x() -> Recipe:
    """Panoptic CondInst, ResNet-101, 3x."""
    return coco_panoptic("3x", resnet(101))


def coco_panoptic_condinst_dcn101_3x() -> Recipe:
    """Panoptic CondInst, ResNet-101 with deformable convolutions, 3x.

    The paper does not say which convolutions are deformable. Ours are in every third block of C3, C4 and C5, as in the
    official BlendMask with a deformable ResNet-101.
    """
    return coco_panoptic("3x", resnet(101, deformable=(3, 4, 5), deformable_interval=3))
