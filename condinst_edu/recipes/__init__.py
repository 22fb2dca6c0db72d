"""Named recipes: each is a function that returns a `Recipe`."""

from collections.abc import Callable

from condinst_edu.engine.recipe import Recipe
from condinst_edu.errors import UserError
from condinst_edu.recipes import bacteria, folder, shapes

RECIPES: dict[str, Callable[[], Recipe]] = {
    "shapes-fcos": shapes.shapes_fcos,
    "shapes-condinst": shapes.shapes_condinst,
    "shapes-mask-rcnn": shapes.shapes_mask_rcnn,
    "folder-condinst": folder.folder_condinst,
    "bacteria-adaptis": bacteria.bacteria_adaptis,
    "bacteria-adaptis-paper": bacteria.bacteria_adaptis_paper,
    "bacteria-v2-adaptis-paper": bacteria.bacteria_v2_adaptis_paper,
    "bacteria-mask-rcnn-paper": bacteria.bacteria_mask_rcnn_paper,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; UserError lists those there are."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
