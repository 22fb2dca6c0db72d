"""Named recipes: each is a function that returns a `Recipe`. A row of an ablation table is one too."""

from collections.abc import Callable

from condinst_edu.engine.recipe import Recipe
from condinst_edu.errors import UserError
from condinst_edu.recipes import (
    adaptis,
    bacteria,
    cityscapes,
    coco,
    coco_blendmask,
    coco_solo,
    dr1mask,
    folder,
    panoptic,
    shapes,
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    "shapes-fcos": shapes.shapes_fcos,
    "shapes-condinst": shapes.shapes_condinst,
    "shapes-blendmask": shapes.shapes_blendmask,
    "shapes-dr1mask": shapes.shapes_dr1mask,
    "shapes-mask-rcnn": shapes.shapes_mask_rcnn,
    "shapes-panoptic-condinst": shapes.shapes_panoptic_condinst,
    "shapes-panoptic-dr1mask": shapes.shapes_panoptic_dr1mask,
    "shapes-panoptic-adaptis": shapes.shapes_panoptic_adaptis,
    "folder-condinst": folder.folder_condinst,
    "shapes-solo": shapes.shapes_solo,
    "shapes-decoupled-solo": shapes.shapes_decoupled_solo,
    "coco-fcos-r50-1x": coco.coco_fcos_r50_1x,
    "coco-condinst-r50-1x": coco.coco_condinst_r50_1x,
    "coco-condinst-r50-1x-800": coco.coco_condinst_r50_1x_800,
    "coco-condinst-r50-3x": coco.coco_condinst_r50_3x,
    "coco-condinst-r50-3x-sem": coco.coco_condinst_r50_3x_sem,
    "coco-condinst-r101-3x": coco.coco_condinst_r101_3x,
    "coco-condinst-r101-3x-sem": coco.coco_condinst_r101_3x_sem,
    "coco-condinst-r101-bifpn-3x": coco.coco_condinst_r101_bifpn_3x,
    "coco-condinst-r101-bifpn-3x-sem": coco.coco_condinst_r101_bifpn_3x_sem,
    "coco-condinst-r101-dcn-bifpn-3x-sem": coco.coco_condinst_r101_dcn_bifpn_3x_sem,
    "coco-condinst-eccv-r50-1x": coco.coco_condinst_eccv_r50_1x,
    "coco-fcos-rt-dla34-4x": coco.coco_fcos_rt_dla34_4x,
    "coco-fcos-rt-dla34-4x-shtw": coco.coco_fcos_rt_dla34_4x_shtw,
    "coco-fcos-rt-r50-4x": coco.coco_fcos_rt_r50_4x,
    "coco-condinst-rt-dla34-4x": coco.coco_condinst_rt_dla34_4x,
    "coco-condinst-rt-dla34-4x-shtw": coco.coco_condinst_rt_dla34_4x_shtw,
    "coco-condinst-rt-r50-4x-shtw": coco.coco_condinst_rt_r50_4x_shtw,
    "coco-blendmask-r50-1x": coco_blendmask.coco_blendmask_r50_1x,
    "coco-blendmask-r50-3x": coco_blendmask.coco_blendmask_r50_3x,
    "coco-blendmask-r101-3x": coco_blendmask.coco_blendmask_r101_3x,
    "coco-blendmask-550-r50-3x": coco_blendmask.coco_blendmask_550_r50_3x,
    "coco-blendmask-rt-r50-4x-shtw": coco_blendmask.coco_blendmask_rt_r50_4x_shtw,
    "coco-panoptic-condinst-r50-1x": panoptic.coco_panoptic_condinst_r50_1x,
    "coco-panoptic-condinst-r50-3x": panoptic.coco_panoptic_condinst_r50_3x,
    "coco-panoptic-condinst-r101-3x": panoptic.coco_panoptic_condinst_r101_3x,
    "coco-panoptic-condinst-dcn101-3x": panoptic.coco_panoptic_condinst_dcn101_3x,
    "cityscapes-condinst-r50": cityscapes.cityscapes_condinst_r50,
    "cityscapes-condinst-r50-sem": cityscapes.cityscapes_condinst_r50_sem,
    "cityscapes-condinst-r50-coco": cityscapes.cityscapes_condinst_r50_coco,
    "cityscapes-condinst-r50-coco-sem": cityscapes.cityscapes_condinst_r50_coco_sem,
    "cityscapes-condinst-dcn101-coco-sem": cityscapes.cityscapes_condinst_dcn101_coco_sem,
    **dr1mask.RECIPES,
    "coco-solo-r50-1x": coco_solo.coco_solo_r50_1x,
    "coco-solo-r50-3x": coco_solo.coco_solo_r50_3x,
    "coco-solo-r101-3x": coco_solo.coco_solo_r101_3x,
    "coco-decoupled-solo-r50-1x": coco_solo.coco_decoupled_solo_r50_1x,
    "coco-decoupled-solo-r50-3x": coco_solo.coco_decoupled_solo_r50_3x,
    "coco-decoupled-solo-r101-3x": coco_solo.coco_decoupled_solo_r101_3x,
    "coco-decoupled-solo-light-r50-3x": coco_solo.coco_decoupled_solo_light_r50_3x,
    "bacteria-adaptis": bacteria.bacteria_adaptis,
    "bacteria-adaptis-paper": bacteria.bacteria_adaptis_paper,
    "bacteria-v2-adaptis-paper": bacteria.bacteria_v2_adaptis_paper,
    "bacteria-mask-rcnn-paper": bacteria.bacteria_mask_rcnn_paper,
    "cityscapes-adaptis-r50": adaptis.cityscapes_adaptis_r50,
    "cityscapes-adaptis-r101": adaptis.cityscapes_adaptis_r101,
    "cityscapes-adaptis-rx101": adaptis.cityscapes_adaptis_rx101,
    "mapillary-adaptis-r50": adaptis.mapillary_adaptis_r50,
    "mapillary-adaptis-r101": adaptis.mapillary_adaptis_r101,
    "mapillary-adaptis-rx101": adaptis.mapillary_adaptis_rx101,
    "coco-adaptis-r50": adaptis.coco_adaptis_r50,
    "coco-adaptis-r101": adaptis.coco_adaptis_r101,
    "coco-adaptis-rx101": adaptis.coco_adaptis_rx101,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name, or that of a table's row such as condinst:table-3:absolute-features.

    Errors: UserError lists those there are.
    """
    if name.startswith("condinst:"):
        from condinst_edu.recipes.ablations import ablation_recipe  # here: it reads rows that use the recipes

        return ablation_recipe(name)
    if name.startswith("dr1mask:"):
        return dr1mask.dr1mask_row(name)
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name]()
