"""Lesson 9's pictures and sliders: what they show is what the plain functions return."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import enliven, same, seeded

from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.engine.evaluate import evaluate
from condinst_edu.engine.recipe import build_model
from condinst_edu.panoptic import PanopticModel, fuse
from condinst_edu.recipes import get_recipe
from condinst_edu.teach.fusion import Found, explore_fusion, fuse_all, look_at, quality_at, show_panoptic
from condinst_edu.teach.segment_pictures import figure_png


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[PanopticModel, PanopticDataset, Found]:
    folder = tmp_path_factory.mktemp("fusion") / "shapes"
    write_shapes(folder, train=1, val=3, show_progress=False)
    dataset = PanopticDataset(folder / "val", folder / "annotations" / "panoptic_val.json", folder / "panoptic_val")
    recipe = get_recipe("shapes-panoptic-condinst")
    torch.manual_seed(0)
    model = build_model(recipe.model, 9, recipe.model_args).eval()
    assert isinstance(model, PanopticModel)
    enliven(model, seeded(1))
    return model, dataset, look_at(model, dataset, 3)


def test_what_is_seen_is_what_the_model_gives(seen: Any) -> None:
    model, dataset, found = seen
    with torch.no_grad():
        for image, result in zip(found.images, fuse_all(found), strict=True):
            same(result["panoptic"], model([image])[0]["panoptic"])
    scores, expected = quality_at(found), evaluate(model, dataset, progress=False)
    for group in ("All", "Things", "Stuff"):
        assert scores[group] == pytest.approx(expected[group])


def test_thresholds_reach_the_fusion(seen: Any) -> None:
    found = seen[2]
    for values in ((0.6, 0.4, 200), (0.45, 1.0, 200), (0.45, 0.4, 5000)):
        expected = [fuse(t, s, *values) for t, s in zip(found.things, found.stuff, strict=True)]
        for mine, theirs in zip(fuse_all(found, *values), expected, strict=True):
            same(mine["panoptic"], theirs["panoptic"])


def test_sliders_show_the_quality(seen: Any) -> None:
    found = seen[2]
    widget = explore_fusion(found, shown=2)
    assert widget.scores == quality_at(found)
    first = widget.picture.value
    widget.min_score.value, widget.min_stuff.value = 0.9, 0
    assert widget.values == (0.9, 0.4, 0)
    assert widget.scores == quality_at(found, 0.9, 0.4, 0)
    assert f"All {100 * widget.scores['All']['pq']:.1f}" in widget.text in widget.line.value
    assert widget.picture.value != first
    bundle = widget._repr_mimebundle_()[0]
    assert {"image/png", "text/plain"} <= bundle.keys()


def test_picture_names_every_segment(seen: Any, tmp_path: Path) -> None:
    found = seen[2]
    figure = show_panoptic({"truth": (found.images[0], found.truth[0])}, found.class_names)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == [found.class_names[row["category_id"] - 1] for row in found.truth[0]["segments_info"]]
    assert figure_png(figure).startswith(b"\x89PNG")


def test_void_is_dark_and_grey() -> None:
    image = torch.tensor([0.9, 0.3, 0.0])[:, None, None].expand(3, 2, 3)
    result = {"panoptic": torch.tensor([[0, 0, 1], [0, 1, 1]]), "segments_info": [{"id": 1, "category_id": 1}]}
    pixels = np.asarray(show_panoptic({"": (image, result)}, ["sky"]).axes[0].images[0].get_array())
    assert pixels[0, 0].tolist() == pytest.approx([0.2] * 3)
    assert pixels[1, 2].std() > 0.1
