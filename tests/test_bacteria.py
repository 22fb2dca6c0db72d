"""The drawn bacteria: what is promised about them, the statistics of the authors' images, and the set's interface."""

import dataclasses
import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from numpy.typing import NDArray
from PIL import Image

from condinst_edu.datasets.bacteria import (
    Bacteria,
    BacteriaConfig,
    BacteriaSample,
    generate,
    open_bacteria,
    paper_config,
    place_cells,
    second_config,
)
from condinst_edu.engine.evaluate import coco_ap, encode_results, mask_ap_at
from condinst_edu.errors import UserError

GOLDEN = Path(os.environ.get("CONDINST_GOLDEN", ROOT.parent / "shared" / "golden")) / "adaptis"
WIDE = dataclasses.replace(paper_config(), size=(70, 110), cells=(3, 9), margin=14.0)


def test_same_seed_and_index_give_the_same_picture() -> None:
    first = generate(7, seed=3)
    generate(8)
    again = generate(7, seed=3)
    assert (first.image == again.image).all()
    assert (first.ids == again.ids).all()
    assert (first.ids != generate(7, seed=4).ids).mean() > 0.1
    assert (first.ids != generate(8, seed=3).ids).mean() > 0.1


@pytest.mark.parametrize("config", [paper_config(), second_config(), WIDE])
def test_pictures_are_as_described(config: BacteriaConfig) -> None:
    counts: list[int] = []
    for index in range(40):
        sample = generate(index, config=config)
        assert sample.image.shape == (*config.size, 3)
        assert sample.image.dtype == np.uint8
        areas = np.bincount(sample.ids.ravel(), minlength=sample.num_cells + 1)[1:]
        assert len(areas) == sample.num_cells
        assert areas.min() >= config.least_visible
        counts.append(sample.num_cells)
    assert min(counts) >= config.cells[0] - 1  # one may find no place
    assert max(counts) <= config.cells[1]
    assert max(counts) - min(counts) > (config.cells[1] - config.cells[0]) / 2


def test_cells_overlap_and_their_boxes_more_so() -> None:
    """Cells are cut by those before them, and share much of their boxes: what makes the problem hard for boxes."""
    hidden = close = 0
    for index in range(20):
        cells = place_cells(np.random.default_rng(index), paper_config())
        hidden += sum(bool(cell.seen.sum() < 0.9 * (cell.depth >= 0).sum()) for cell in cells)
        close += len(cells)
    assert 0.3 * close < hidden < 0.9 * close


def test_seen_parts_belong_to_the_cell_in_front() -> None:
    cells = place_cells(np.random.default_rng(5), paper_config())
    front = np.zeros(paper_config().size, bool)
    for cell in cells:
        inside = cell.depth >= 0
        assert (cell.seen == (inside & ~front[cell.window])).all()
        front[cell.window] |= inside


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="index and seed are at least 0"):
        generate(-1)
    with pytest.raises(ValueError, match="no place for cells"):
        BacteriaConfig(size=(20, 96))
    with pytest.raises(ValueError, match="least <= most"):
        BacteriaConfig(cells=(9, 3))
    with pytest.raises(UserError, match="choose from bacteria, bacteria-v2"):
        open_bacteria("amoebae", training=True)
    with pytest.raises(UserError, match="an image or more"):
        Bacteria(0)


def test_fast_enough_to_draw_while_training() -> None:
    """A few milliseconds on a machine with nothing else to do; the limit here leaves room for a busy one."""
    begin = time.process_time()
    for index in range(20):
        generate(index)
    assert (time.process_time() - begin) / 20 < 0.02


# --------------------------------------------------------------------------------------------- the authors' own images


def statistics(sample: BacteriaSample) -> dict[str, Any]:
    """Numbers that `toy_sample_statistics.json` has of the authors' images: areas, colours inside and at edges."""
    ids, image = sample.ids.astype(int), sample.image
    inner = eroded(ids, ids > 0)
    core = eroded(ids, inner)
    background = eroded(ids, ids == 0)
    return {
        "visible_area": np.percentile(np.bincount(ids.ravel())[1:], [25, 50, 75]),
        "core": image[core].mean(axis=0),
        "edge": image[(ids > 0) & ~inner].mean(axis=0),
        "background": image[background].mean(axis=0),
        "background_std": image[background].std(axis=0),
        "share": (ids == 0).mean(),
    }


def eroded(ids: NDArray[np.int64], region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the region whose eight neighbours are in it and have their id."""
    height, width = ids.shape
    padded, within = np.pad(ids, 1, mode="edge"), np.pad(region, 1, mode="edge")
    result = region.copy()
    for dy in range(3):
        for dx in range(3):
            part = (slice(dy, dy + height), slice(dx, dx + width))
            result &= (padded[part] == ids) & within[part]
    return result


@pytest.mark.parametrize(("name", "cells"), [("v1_250", 250), ("v2_250a", 250), ("v2_100", 100)])
def test_statistics_of_the_authors_images(name: str, cells: int) -> None:
    """Large images with as many cells as theirs: visible areas within a fifth, colours within 20 of 255."""
    path = GOLDEN / "toy_sample_statistics.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there (set CONDINST_GOLDEN)")
    theirs = json.loads(path.read_text())[name]
    base = dataclasses.replace(paper_config(), effects=0.0) if name.startswith("v1") else second_config()
    config = dataclasses.replace(base, size=(256, 256), cells=(cells, cells), margin=14.0)
    ours = statistics(generate(0, config=config))
    low, middle, high = theirs["visible_area"][2:5]
    assert ours["visible_area"] == pytest.approx([low, middle, high], rel=0.21)
    for key in ("core", "edge", "background"):
        assert ours[key] == pytest.approx(theirs[f"{key}_rgb_mean"], abs=20), key
    assert ours["background_std"] == pytest.approx(theirs["background_rgb_std"], abs=6)
    assert ours["share"] == pytest.approx(theirs["background_fraction"], abs=0.06)


def test_the_authors_images_are_measured_alike() -> None:
    """The statistics here, of the authors' own picture, are those of the file."""
    folder = GOLDEN / "toy_samples"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set CONDINST_GOLDEN)")
    image = np.array(Image.open(folder / "00003_100_rgb.png").convert("RGB"))
    ids = np.array(Image.open(folder / "00003_100_im.png")).astype(np.uint16)
    theirs = json.loads((GOLDEN / "toy_sample_statistics.json").read_text())["v2_100"]
    measured = statistics(BacteriaSample(image, ids, int(ids.max())))
    assert measured["visible_area"] == pytest.approx(theirs["visible_area"][2:5], rel=0.01)
    for key in ("core", "edge", "background"):
        assert measured[key] == pytest.approx(theirs[f"{key}_rgb_mean"], abs=4), key


# ------------------------------------------------------------------------------------------------------------ data set


def test_samples_are_as_of_a_folder() -> None:
    data = Bacteria(5, start=3, seed=1, config=WIDE)
    image, target = data[2]
    sample = generate(5, seed=1, config=WIDE)
    assert torch.equal(image, torch.from_numpy(sample.image).permute(2, 0, 1))
    assert image.dtype == torch.uint8
    assert target["masks"].shape == (sample.num_cells, 70, 110)
    for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
        y, x = mask.nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert target["labels"].tolist() == [1] * sample.num_cells
    assert not target["iscrowd"].any()
    assert target["image_id"] == data.image_ids[2]
    assert torch.equal(data.target(2)["masks"], target["masks"])
    assert torch.equal(data[-1][0], data[4][0])
    with pytest.raises(IndexError):
        data[5]
    assert len(data.first(2)) == 2
    assert len(pickle.loads(pickle.dumps(data))) == 5  # loader processes get a copy


def test_sets_have_the_authors_sizes_and_share_no_image() -> None:
    train, test = (open_bacteria("bacteria", training) for training in (True, False))
    assert (len(train), len(test)) == (10_000, 2_000)
    assert not set(train.image_ids) & set(test.image_ids)
    assert (len(open_bacteria("bacteria-v2", True)), len(open_bacteria("bacteria-v2", False))) == (25_000, 1_000)
    assert open_bacteria("bacteria-v2", True).sizes[0] == (128, 128)


def test_perfect_results_have_a_perfect_score() -> None:
    data = Bacteria(3, config=WIDE)
    results, worse = [], []
    for i in range(3):
        target = data.target(i)
        found = {**target, "scores": torch.linspace(0.9, 0.5, len(target["labels"]))}
        results += encode_results(found, target["image_id"], data.category_ids)
        half = target["masks"].clone()
        half[:, :, : half.shape[2] // 2] = False
        worse += encode_results({**found, "masks": half}, target["image_id"], data.category_ids)
    assert coco_ap(data.truth(), results)["mask"]["AP"] == pytest.approx(1)
    assert mask_ap_at(data, results, (0.5, 0.9)) == {0.5: pytest.approx(1), 0.9: pytest.approx(1)}
    scores = mask_ap_at(data, worse, (0.5, 0.75, 0.9))
    assert 0 < scores[0.9] <= scores[0.5] < 0.9
    expected = coco_ap(data.truth(), worse)["mask"]
    assert scores[0.5] == pytest.approx(expected["AP50"])
    assert scores[0.75] == pytest.approx(expected["AP75"])
