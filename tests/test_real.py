"""Real photographs: learned by heart, and from fourteen to four others. The folder is named by CONDINST_REAL."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from condinst_edu.engine.evaluate import evaluate, mask_ceiling
from condinst_edu.engine.recipe import Recipe, override_model
from condinst_edu.engine.train import open_split, train
from condinst_edu.recipes.folder import folder_condinst

REAL = Path(os.environ.get("CONDINST_REAL", Path(__file__).resolve().parents[2] / "shared" / "real"))

SMALL = (
    "backbone=tiny",
    "backbone_options={'widths':(24,32,64,96,128)}",
    "channels=64",
    "bottom={'channels':48,'convs':2}",
)


def recipe_of(name: str, settings: tuple[str, ...], **changes: Any) -> Recipe:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there (set CONDINST_REAL)")
    recipe = override_model(folder_condinst(), SMALL + settings)
    return dataclasses.replace(recipe, data=REAL / name, lr=3e-3, workers=0, **changes)


def run(recipe: Recipe, out: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """Train and score; prints the mask AP and what perfect masks would reach."""
    torch.set_num_threads(2)
    model: Any = train(recipe, out, show_progress=False)
    held_out = open_split(recipe, "val")
    size = (recipe.test_short_side, recipe.max_size)
    scores = evaluate(model, held_out, short_side=size[0], max_size=size[1], progress=False)
    ceiling = mask_ceiling(held_out, model.mask_stride, *size)
    with capsys.disabled():
        print(f"\n{recipe.data.name}: mask AP {scores['mask']['AP']:.3f}, box AP {scores['box']['AP']:.3f}, ", end="")
        print(f"perfect masks at stride {model.mask_stride} {ceiling['mask']['AP']:.3f}")
    mask_ap: float = scores["mask"]["AP"]
    return mask_ap


@pytest.mark.slow
def test_two_photographs_learned_by_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("levels=(2,3,4,5,6)", "head_from=3", "ranges=(64,128,256)", "factor=4")  # masks at stride 1
    recipe = recipe_of(
        "coco_panoptic2",
        (*settings, "mask_limit=20", "sampling=random"),
        train_json="annotations/instances.json",
        val_json="annotations/instances.json",
        short_sides=(427,),
        test_short_side=427,
        flip=0.0,
        batch_size=2,
        iterations=400,
    )
    assert run(recipe, tmp_path, capsys) >= 0.90


@pytest.mark.slow
def test_held_out_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(
        "nuts18",
        ("mask_limit=24",),
        train_json="annotations/instances_train.json",
        val_json="annotations/instances_val.json",
        short_sides=(208, 224, 240, 256, 272),
        test_short_side=240,
        vertical_flip=0.5,
        batch_size=4,
        iterations=500,
    )
    assert run(recipe, tmp_path, capsys) >= 0.55
