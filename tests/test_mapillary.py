"""Mapillary Vistas' maps of instances, written here, as panoptic files; and files in the form of its own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from condinst_edu.cli import run
from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.engine.recipe import override_model
from condinst_edu.engine.train import open_split, train
from condinst_edu.recipes import get_recipe

Numbers = NDArray[np.uint16]
THINGS = {0, 1, 8, *range(19, 24), *range(32, 43), *range(44, 58), *range(59, 63)}  # of version 1.2
ROAD, CAR, PERSON, SKY, UNLABELED = 13, 55, 19, 27, 65


def write_image(root: Path, split: str, name: str, numbers: Numbers) -> None:
    for kind in ("images", "instances", "labels"):
        (root / split / kind).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (*numbers.shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / split / "images" / f"{name}.jpg")
    Image.fromarray(numbers).save(root / split / "instances" / f"{name}.png")
    Image.fromarray((numbers // 256).astype(np.uint8)).save(root / split / "labels" / f"{name}.png")


def write_config(path: Path) -> None:
    labels = [
        {"name": f"group--{i}", "readable": f"Label {i}", "instances": i in THINGS, "evaluate": i != UNLABELED}
        for i in range(66)
    ]
    path.write_text(json.dumps({"version": "1.2", "labels": labels}))


@pytest.fixture
def street() -> Numbers:
    """Road, sky, a bird, two cars, the second in two parts, three persons, and a part without a label."""
    numbers = np.full((40, 70), ROAD * 256, np.uint16)
    numbers[:10] = SKY * 256
    numbers[2:4, 3:6] = 0  # label 0, object 0
    numbers[20:30, 5:20], numbers[22:28, 8:12], numbers[34:36, 2:9] = CAR * 256, CAR * 256 + 1, CAR * 256 + 1
    for k in range(3):
        numbers[12:30, 30 + 9 * k : 34 + 9 * k] = PERSON * 256 + k
    numbers[36:, 50:] = UNLABELED * 256
    return numbers


@pytest.fixture
def vistas(tmp_path: Path, street: Numbers) -> Path:
    write_config(tmp_path / "config.json")
    write_image(tmp_path, "training", "a-_b7", street)
    write_image(tmp_path, "training", "Zq", np.full((30, 50), ROAD * 256, np.uint16))
    write_image(tmp_path, "validation", "cc", street[:, ::-1].copy())
    return tmp_path


def test_panoptic_files(vistas: Path, street: Numbers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(vistas)]) == 2
    assert "`condinst-edu data mapillary" in capsys.readouterr().err
    assert run(["data", "mapillary", str(vistas)]) == 0
    out = capsys.readouterr().out
    assert "training/panoptic/panoptic_2018.json: 2 images, 9 segments" in out
    assert "validation/panoptic/panoptic_2018.json: 1 images, 8 segments" in out
    assert run(["data", "check", str(vistas), "--decode"]) == 0
    out = capsys.readouterr().out
    assert out.count("complete") == 2
    assert "9 segments of 37 classes of things and 28 of stuff" in out
    assert run(["data", "mapillary", str(vistas)]) == 0
    assert capsys.readouterr().out.count("is there already") == 2
    check_dataset(vistas, "validation", street[:, ::-1])


def check_dataset(root: Path, split: str, numbers: Numbers) -> None:
    """65 classes, things first; each number a segment, the part without a label in none."""
    folder = root / split
    data = PanopticDataset(folder / "images", folder / "panoptic" / "panoptic_2018.json", folder / "panoptic")
    assert len(data.category_ids) == 65
    assert data.num_things == 37
    assert data.category_ids[:37] == sorted(i + 1 for i in THINGS)
    assert UNLABELED + 1 not in data.category_ids
    index = next(i for i, name in enumerate(data.file_names) if name != "Zq.jpg")
    image, target = data[index]
    assert image.shape == (3, *numbers.shape)
    found = {}
    for mask, label in zip(target["masks"], target["labels"].tolist(), strict=True):
        (number,) = np.unique(numbers[mask.numpy()]).tolist()  # of one segment alone
        found[number] = mask
        assert data.category_ids[label - 1] == number // 256 + 1
        assert (label <= 37) == (number // 256 in THINGS)
    assert found.keys() == set(np.unique(numbers).tolist()) - {UNLABELED * 256}
    assert all(np.array_equal(mask.numpy(), numbers == number) for number, mask in found.items())
    assert not target["iscrowd"].any()


def test_files_of_the_download(vistas: Path, street: Numbers, capsys: pytest.CaptureFixture[str]) -> None:
    """Images have texts for ids there; the reader counts them from 1."""
    assert run(["data", "mapillary", str(vistas)]) == 0
    path = vistas / "training" / "panoptic" / "panoptic_2018.json"
    data = json.loads(path.read_text())
    names = {image["id"]: image["file_name"].removesuffix(".jpg") for image in data["images"]}
    for image in data["images"]:
        image["id"] = names[image["id"]]
    for row in data["annotations"]:
        row["image_id"] = names[row["image_id"]]
    data["annotations"].reverse()
    path.write_text(json.dumps(data))
    check_dataset(vistas, "training", street)
    assert run(["data", "check", str(vistas)]) == 0
    data["images"].append(data["images"][0])
    path.write_text(json.dumps(data))
    capsys.readouterr()
    assert run(["data", "check", str(vistas)]) == 2
    assert "images has the id Zq twice" in capsys.readouterr().err
    data["images"] = data["images"][:1]
    path.write_text(json.dumps(data))
    assert run(["data", "check", str(vistas)]) == 2
    assert "is of image a-_b7, which is not listed" in capsys.readouterr().err


def test_beside_version_2(vistas: Path) -> None:
    for split in ("training", "validation"):
        (vistas / split / "v1.2").mkdir()
        (vistas / split / "instances").rename(vistas / split / "v1.2" / "instances")
    (vistas / "config.json").rename(vistas / "config_v1.2.json")
    assert run(["data", "mapillary", str(vistas)]) == 0
    assert run(["data", "check", str(vistas)]) == 0
    assert len(list((vistas / "training" / "v1.2" / "panoptic").iterdir())) == 3


def test_training(vistas: Path, tmp_path: Path) -> None:
    """The recipe for Mapillary, with the toy problem's network, finds everything where it is."""
    assert run(["data", "mapillary", str(vistas)]) == 0
    recipe = override_model(
        get_recipe("mapillary-adaptis-rx101"),
        ("backbone=unet", "points=2", "branch_width=4", "head.width=4", "flip=False", "limit=2", "propose=random"),
    )
    args = recipe.model_args | {"backbone_options": {"width": 4, "depth": 1}}
    recipe = dataclasses.replace(recipe, model_args=args, data=vistas, iterations=1, batch_size=1, workers=0)
    recipe = dataclasses.replace(recipe, short_sides=(40,), crop=(20, 30), test_short_side=40)
    model = train(recipe, tmp_path / "out", show_progress=False)
    held_out = open_split(recipe, "val")
    image, target = held_out[0]
    with torch.no_grad():
        result = model([image / 255])[0]
    assert result["panoptic"].shape == (40, 70)
    assert target["labels"].max() > 37


def test_what_is_wrong(vistas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> str:
        assert run(["data", "mapillary", str(vistas)]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    path = vistas / "training" / "instances" / "Zq.png"
    Image.fromarray(np.full((30, 50), 66 * 256, np.uint16)).save(path)
    assert "Zq.png has label 66, but" in error()
    Image.new("RGB", (7, 4)).save(path)
    assert "is no map of numbers" in error()
    path.write_bytes(b"broken")
    assert "cannot be read as an image" in error()
    assert not (vistas / "training" / "panoptic" / "panoptic_2018.json").exists()
    config = vistas / "config.json"
    config.write_text(json.dumps({"labels": [{"name": "a", "readable": "A", "instances": 1, "evaluate": True}]}))
    assert "labels[0] has no 'instances' of type bool" in error()
    config.write_text("[]")
    assert "is no list of Mapillary's labels" in error()
    config.unlink()
    assert "config.json does not exist" in error()
    assert run(["data", "mapillary", str(tmp_path / "nothing")]) == 2
    assert "has no training/instances/*.png" in capsys.readouterr().err
