"""COCO: the models of the DR1Mask paper, and every row of its Tables 1 to 7.

    torchrun --nproc-per-node 4 -m condinst_edu.cli train coco-dr1mask-r50-1x --device cuda
    torchrun --nproc-per-node 4 -m condinst_edu.cli train dr1mask:table-1:w-a --device cuda

1x is 90 000 iterations with steps at 60 000 and 80 000, 3x is 270 000 with steps at 180 000 and 240 000 (the paper's,
not the official ones of CondInst); 1000 iterations of warm-up, rate 0.01, 16 images, short sides 640 to 800. The
auxiliary semantic loss has weight 0.3. ResNets start from torchvision's IMAGENET1K_V1, as those of CondInst here.
None of these recipes has been run to its end here. The panoptic ones train on COCO's panoptic files, see panoptic.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from condinst_edu.engine.recipe import Recipe, override_model
from condinst_edu.errors import UserError
from condinst_edu.papers import TABLES
from condinst_edu.recipes.panoptic import PANOPTIC_FILES

STEPS = {90_000: (60_000, 80_000), 270_000: (180_000, 240_000)}


def dr1mask(depth: int, iterations: int, backbone_options: dict[str, Any] | None = None, **model_args: Any) -> Recipe:
    """A recipe of the paper: depth of the ResNet, iterations of its 1x or 3x, and arguments of the model."""
    backbone = {"weights": "IMAGENET1K_V1", **(backbone_options or {})}
    return Recipe(
        model="dr1mask",
        model_args={"backbone": f"resnet{depth}", "backbone_options": backbone, "semantic": 0.3, **model_args},
        workers=4,
        iterations=iterations,
        milestones=tuple(step / iterations for step in STEPS[iterations]),
        warmup=1000 / iterations,
    )


def coco_dr1mask_r50_1x() -> Recipe:
    """DR1Mask, ResNet-50, 1x, factored attention (Table 4's best row)."""
    return dr1mask(50, 90_000)


def coco_dr1mask_r50_3x() -> Recipe:
    """DR1Mask, ResNet-50, 3x."""
    return dr1mask(50, 270_000)


def coco_dr1mask_r101_3x() -> Recipe:
    """DR1Mask, ResNet-101, 3x."""
    return dr1mask(101, 270_000)


def coco_dr1mask_r101_dcn_3x() -> Recipe:
    """DR1Mask*, ResNet-101 with deformable convolutions, 3x.

    The paper does not say which are deformable: ours are in every third block of C3, C4 and C5, as in the official
    BlendMask with a deformable ResNet-101.
    """
    return dr1mask(101, 270_000, {"deformable": (3, 4, 5), "deformable_interval": 3})


def panoptic(recipe: Recipe, width: int) -> Recipe:
    """The same with the unified panoptic layer for COCO's 53 classes of stuff, and a vector for each instance."""
    args = {**recipe.model_args, "num_things": 80, "attention": "vector", "basis": {"width": width}}
    changes: dict[str, Any] = {"model": "panoptic-dr1mask", "model_args": args, **PANOPTIC_FILES}
    return dataclasses.replace(recipe, **changes)


def coco_dr1mask_panoptic_r50_1x() -> Recipe:
    """Panoptic DR1Mask, ResNet-50, 1x, 32 channels: what Tables 2, 5 and 7 start from."""
    return panoptic(coco_dr1mask_r50_1x(), 32)


def coco_dr1mask_panoptic_r50_3x() -> Recipe:
    """Panoptic DR1Mask, ResNet-50, 3x, 64 channels (Table 9); Table 6 has it with 32 and 128 too."""
    return panoptic(coco_dr1mask_r50_3x(), 64)


def coco_dr1mask_panoptic_r101_3x() -> Recipe:
    """Panoptic DR1Mask, ResNet-101, 3x, 64 channels."""
    return panoptic(coco_dr1mask_r101_3x(), 64)


def coco_dr1mask_panoptic_r101_dcn_3x() -> Recipe:
    """Panoptic DR1Mask*, ResNet-101 with deformable convolutions, 3x, 64 channels."""
    return panoptic(coco_dr1mask_r101_dcn_3x(), 64)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "coco-dr1mask-r50-1x": coco_dr1mask_r50_1x,
    "coco-dr1mask-r50-3x": coco_dr1mask_r50_3x,
    "coco-dr1mask-r101-3x": coco_dr1mask_r101_3x,
    "coco-dr1mask-r101-dcn-3x": coco_dr1mask_r101_dcn_3x,
    "coco-dr1mask-panoptic-r50-1x": coco_dr1mask_panoptic_r50_1x,
    "coco-dr1mask-panoptic-r50-3x": coco_dr1mask_panoptic_r50_3x,
    "coco-dr1mask-panoptic-r101-3x": coco_dr1mask_panoptic_r101_3x,
    "coco-dr1mask-panoptic-r101-dcn-3x": coco_dr1mask_panoptic_r101_dcn_3x,
}

# ---------------------------------------------------------------------------------------------------------- ablations

# Each table's recipe, and the model arguments of its rows in the paper's order; Tables 1 to 3 have vector attention.
VECTOR = "attention=vector"
ROWS: dict[str, tuple[Callable[[], Recipe], tuple[tuple[str, ...], ...]]] = {
    "dr1mask:table-1": (
        coco_dr1mask_r50_1x,
        ((VECTOR, "factors=none"), (VECTOR, "factors=a"), (VECTOR, "factors=b"), (VECTOR,)),
    ),
    "dr1mask:table-2": (coco_dr1mask_panoptic_r50_1x, (("factors=none",), ())),
    "dr1mask:table-3": (
        coco_dr1mask_r50_1x,
        ((VECTOR, "factors=none"), (VECTOR, "context=fpn"), (VECTOR, "context=class"), (VECTOR,)),
    ),
    "dr1mask:table-4": (coco_dr1mask_r50_1x, ((VECTOR,), ("attention=full",), ())),
    "dr1mask:table-5": (
        coco_dr1mask_panoptic_r50_1x,
        (("divisor=32", "basis.aligned=False"), ("divisor=128", "basis.aligned=False"), ()),
    ),
    "dr1mask:table-6": (coco_dr1mask_panoptic_r50_3x, (("basis.width=32",), (), ("basis.width=128",))),
    "dr1mask:table-7": (coco_dr1mask_panoptic_r50_1x, ((), ("attention=factored",))),
}


def dr1mask_rows() -> list[str]:
    """Names of all rows, such as dr1mask:table-3:class-tower."""
    return [f"{table}:{row_name(table, i)}" for table, (_, rows) in ROWS.items() for i in range(len(rows))]


def dr1mask_row(name: str) -> Recipe:
    """The recipe of a row. Errors: UserError with the rows that there are."""
    for table, (base, rows) in ROWS.items():
        for i, settings in enumerate(rows):
            if name == f"{table}:{row_name(table, i)}":
                return override_model(base(), settings)
    near = [row for row in dr1mask_rows() if row.startswith(":".join(name.split(":")[:2]) + ":")]
    raise UserError(f"unknown row {name!r}: expected one of {', '.join(near or dr1mask_rows())}")


def row_name(table: str, index: int) -> str:
    """A row's first cell in small letters, its words joined: "w/ A, B" is w-a-b; of "w/o", wo."""
    cell = str(TABLES[table].rows[index][0]).lower().replace("w/o", "wo")
    return "-".join("".join(c if c.isalnum() else " " for c in cell).split())
