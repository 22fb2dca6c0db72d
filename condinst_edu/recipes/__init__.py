"""Named recipes: each is a function that returns a `Recipe`."""

from collections.abc import Callable

from condinst_edu.engine.recipe import Recipe
from condinst_edu.errors import UserError
from condinst_edu.recipes import coco_solo, folder, shapes

RECIPES: dict[str, Callable[[], Recipe]] = {
    "shapes-fcos": shapes.shapes_fcos,
    "shapes-condinst": shapes.shapes_condinst,
    "shapes-mask-rcnn": shapes.shapes_mask_rcnn,
    "folder-condinst": folder.folder_condinst,
    "shapes-solo": shapes.shapes_solo,
    "shapes-decoupled-solo": shapes.shapes_decoupled_solo,
    "coco-solo-r50-1x": coco_solo.coco_solo_r50_1x,
    "coco-solo-r50-3x": coco_solo.coco_solo_r50_3x,
    "coco-solo-r101-3x": coco_solo.coco_solo_r101_3x,
    "coco-decoupled-solo-r50-1x": coco_solo.coco_decoupled_solo_r50_1x,
    "coco-decoupled-solo-r50-3x": coco_solo.coco_decoupled_solo_r50_3x,
    "coco-decoupled-solo-r101-3x": coco_solo.coco_decoupled_solo_r101_3x,
    "coco-decoupled-solo-light-r50-3x": coco_solo.coco_decoupled_solo_light_r50_3x,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; UserError lists those there are."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
