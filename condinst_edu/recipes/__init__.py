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
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; UserError lists those there are."""
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
