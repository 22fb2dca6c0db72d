"""Cityscapes' maps of numbers, written here, as COCO annotations, as panoptic files and as classes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from condinst_edu.cli import run
from condinst_edu.datasets.cityscapes import CLASSES, THINGS, read_semantic
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.train import open_split
from condinst_edu.errors import UserError
from condinst_edu.recipes import get_recipe

Ids = NDArray[np.uint16]


def write_city(root: Path, split: str, city: str, number: int, ids: Ids) -> None:
    name = f"{city}_{number:06}_000019"
    gt, images = root / "gtFine" / split / city, root / "leftImg8bit" / split / city
    for folder in (gt, images):
        folder.mkdir(parents=True, exist_ok=True)
    labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
    Image.fromarray(ids).save(gt / f"{name}_gtFine_instanceIds.png")
    Image.fromarray(labels).save(gt / f"{name}_gtFine_labelIds.png")
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)).save(
        images / f"{name}_leftImg8bit.png"
    )


@pytest.fixture
def street() -> Ids:
    """Road, sky, two cars (one in two parts), a rider, a group of persons, a caravan (not one of the eight classes)."""
    ids = np.full((40, 70), 7, np.uint16)
    ids[:10] = 23
    ids[20:30, 5:20], ids[22:28, 8:12] = 26000, 26001
    ids[12:30, 40:44], ids[12:20, 50:60], ids[30:36, 60:69], ids[38:, :9] = 25000, 24, 29000, 0
    ids[21:24, 25:30] = 26000
    return ids


def test_instances(street: Ids, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_city(tmp_path, "train", "aachen", 3, street)
    write_city(tmp_path, "train", "bochum", 1, np.full((30, 50), 21, np.uint16))
    write_city(tmp_path, "val", "ulm", 2, street[:, ::-1].copy())
    assert run(["data", "cityscapes", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "instances_train.json: 2 images, 4 objects" in out
    assert "instances_val.json: 1 images, 4 objects" in out
    for split, expected, index in (("train", street, 0), ("val", street[:, ::-1], 0)):
        data = CocoDataset(tmp_path / "leftImg8bit" / split, tmp_path / "annotations" / f"instances_{split}.json")
        assert data.category_ids == [24, 25, 26, 27, 28, 31, 32, 33]
        assert data.class_names == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
        image, target = data[index]
        assert image.shape == (3, 40, 70)
        numbers = [24, 25000, 26000, 26001]
        assert [data.category_ids[label - 1] for label in target["labels"]] == [24, 25, 26, 26]
        assert target["iscrowd"].tolist() == [True, False, False, False]
        for mask, box, number in zip(target["masks"], target["boxes"].tolist(), numbers, strict=True):
            assert np.array_equal(mask.numpy(), expected == number)
            y, x = np.nonzero(expected == number)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert run(["data", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("complete") == 2


def test_panoptic(street: Ids, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All segments of the 19 classes, where the recipe looks for them; the rest is void."""
    write_city(tmp_path, "train", "aachen", 3, street)
    write_city(tmp_path, "val", "ulm", 2, np.full((30, 50), 21, np.uint16))
    assert run(["data", "cityscapes", "--root", str(tmp_path)]) == 0
    assert "panoptic_train.json: 1 images, 6 segments" in capsys.readouterr().out
    recipe = dataclasses.replace(get_recipe("cityscapes-adaptis-r50"), data=tmp_path)
    data = open_split(recipe, "train")
    assert len(data.category_ids) == 19
    assert data.category_ids[:8] == [24, 25, 26, 27, 28, 31, 32, 33]
    image, target = data[0]
    assert image.shape == (3, 40, 70)
    assert [data.category_ids[label - 1] for label in target["labels"]] == [7, 23, 24, 25, 26, 26]
    assert target["iscrowd"].tolist() == [False, False, True, False, False, False]
    for mask, number in zip(target["masks"], [7, 23, 24, 25000, 26000, 26001], strict=True):
        assert np.array_equal(mask.numpy(), street == number)
    assert len(open_split(recipe, "val")) == 1
    for split in ("train", "val"):
        assert run(["data", "check", str(tmp_path / "annotations" / f"panoptic_{split}.json"), "--decode"]) == 0


def test_semantic(street: Ids, tmp_path: Path) -> None:
    write_city(tmp_path, "val", "ulm", 2, street)
    found = read_semantic(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000002_000019_gtFine_labelIds.png")
    assert found.dtype == torch.uint8
    names = ["road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"]
    names += ["terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert list(CLASSES.values()) == names  # Cityscapes' own order
    assert len(THINGS) == 8
    for (y, x), name in {(15, 0): "road", (0, 0): "sky", (25, 9): "car", (25, 6): "car", (15, 55): "person"}.items():
        assert found[y, x] == names.index(name)
    assert found[33, 65] == found[39, 0] == 255  # caravan and nothing
    with pytest.raises(UserError, match="has numbers above 255"):
        read_semantic(tmp_path / "gtFine" / "val" / "ulm" / "ulm_000002_000019_gtFine_instanceIds.png")


def test_what_is_wrong(street: Ids, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "cityscapes", "--root", str(tmp_path)]) == 2
    assert "has no gtFine/train/CITY" in capsys.readouterr().err
    write_city(tmp_path, "val", "ulm", 2, street)
    path = tmp_path / "gtFine" / "val" / "ulm" / "ulm_000002_000019_gtFine_instanceIds.png"
    Image.new("RGB", (7, 4)).save(path)
    assert run(["data", "cityscapes", "--root", str(tmp_path)]) == 2
    assert "is no map of numbers" in capsys.readouterr().err
    path.write_bytes(b"broken")
    assert run(["data", "cityscapes", "--root", str(tmp_path)]) == 2
    assert "cannot be read as an image" in capsys.readouterr().err
    assert not (tmp_path / "annotations").exists()
