"""COCO's panoptic files: read, written and read again without a changed pixel, and bad ones in one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from PIL import Image

from condinst_edu.datasets.coco_panoptic import PanopticDataset, PanopticFiles, PanopticWriter, boxes_around, read_ids
from condinst_edu.datasets.shapes_coco import write_shapes
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.errors import UserError
from condinst_edu.panoptic import evaluate_coco_panoptic, split_target

REAL = Path(os.environ.get("CONDINST_REAL", Path(__file__).resolve().parents[2] / "shared" / "real"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoptic") / "shapes"
    write_shapes(folder, train=6, val=2, show_progress=False)
    return folder


def open_shapes(folder: Path, **options: Any) -> PanopticDataset:
    annotations = folder / "annotations" / "panoptic_train.json"
    return PanopticDataset(folder / "train", annotations, folder / "panoptic_train", **options)


def test_ids_are_red_green_blue(tmp_path: Path) -> None:
    rgb = torch.randint(256, (7, 11, 3), generator=seeded(0), dtype=torch.uint8).numpy()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    ids = read_ids(tmp_path / "a.png")
    for y, x in np.ndindex(7, 11):
        assert ids[y, x] == int(rgb[y, x, 0]) + 256 * int(rgb[y, x, 1]) + 65536 * int(rgb[y, x, 2])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """All colours from 0 to the last, any file type of the image, sizes that are not square."""
    ids = torch.randint(2**24, (23, 40), generator=seeded(0))
    ids[0, :3] = torch.tensor([0, 1, 2**24 - 1])
    rows = [{"id": int(i), "category_id": 3, "area": int((ids == i).sum())} for i in ids.unique() if i]
    with PanopticWriter(tmp_path / "found.json", categories=[{"id": 3, "isthing": 0, "name": "sky"}]) as writer:
        writer.add(
            {"id": 9, "file_name": "a.b.jpg", "height": 23, "width": 40}, {"panoptic": ids, "segments_info": rows}
        )
        assert not (tmp_path / "found.json").exists()  # not before all are there
    files = PanopticFiles(tmp_path / "found.json", truth=True)
    assert torch.equal(files[9]["panoptic"], ids)
    assert files[9]["segments_info"] == rows
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["a.b.png"]
    assert evaluate_coco_panoptic(tmp_path / "found.json", tmp_path / "found.json")["All"]["pq"] == 1


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.png", "height": 2, "width": 2}
    with pytest.raises(ValueError, match="0 to 16777215, not 0 to 16777216"), PanopticWriter(tmp_path / "x.json") as w:
        w.add(image, {"panoptic": torch.tensor([[0, 2**24]]), "segments_info": []})
    assert list(tmp_path.iterdir()) == []


def test_dataset_of_shapes(shapes: Path) -> None:
    dataset = open_shapes(shapes)
    assert dataset.category_ids == list(range(1, 10))
    assert dataset.class_names[:2] + dataset.class_names[5:] == ["circle", "square", "sky", "grass", "water", "sand"]
    assert (dataset.num_things, len(dataset), dataset.sizes[0]) == (5, 6, (128, 128))
    truth = json.loads((shapes / "annotations" / "panoptic_train.json").read_text())
    for i, row in enumerate(truth["annotations"]):
        image, target = dataset[i]
        assert image.shape == (3, 128, 128)
        ids = torch.from_numpy(np.array(Image.open(shapes / "panoptic_train" / row["file_name"])).astype(int))[..., 0]
        assert target["masks"].sum(dim=0).eq(1).all()  # every pixel belongs to one segment
        for mask, box, label, segment in zip(
            target["masks"], target["boxes"], target["labels"], row["segments_info"], strict=True
        ):
            assert torch.equal(mask, ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]
            assert label == segment["category_id"]
        same = dataset.target(i)
        assert torch.equal(same["masks"], target["masks"])
    with pytest.raises(IndexError):
        dataset[6]


def test_transform_keeps_things_and_stuff_in_step(shapes: Path) -> None:
    """Sampled at stride 2: the map of stuff is the full-size one read at those pixels, mirrored or not."""
    dataset = open_shapes(shapes, cache=True)
    for index in range(6):
        for seed in range(2):
            image, target = TrainTransform(mask_stride=2)(*dataset[index], seed=seed)
            flipped = not torch.equal(image, dataset[index][0])
            things, stuff = split_target(target, dataset.num_things)
            full_things, full_stuff = split_target(dataset.target(index), dataset.num_things)
            expected = full_stuff.flip(1) if flipped else full_stuff
            assert torch.equal(stuff, expected[1::2, 1::2])
            assert len(things["labels"]) == len(full_things["labels"])
            assert (stuff == 0).eq(things["masks"].any(dim=0)).all()


def test_empty_and_crowded_images(shapes: Path, tmp_path: Path) -> None:
    data = json.loads((shapes / "annotations" / "panoptic_train.json").read_text())
    for segment in data["annotations"][0]["segments_info"]:
        segment["iscrowd"] = segment["category_id"] % 2
    data["annotations"][1]["segments_info"] = []
    (tmp_path / "some.json").write_text(json.dumps(data))
    arguments = (shapes / "train", tmp_path / "some.json", shapes / "panoptic_train")
    dataset = PanopticDataset(*arguments)
    _, target = dataset[1]
    assert target["masks"].shape == (0, 128, 128)
    assert target["boxes"].shape == (0, 4)
    _, target = dataset[0]
    assert target["iscrowd"].tolist() == [bool(label % 2) for label in target["labels"].tolist()]
    assert len(PanopticDataset(*arguments, keep_empty=False)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("categories"), "is no COCO panoptic file: it has no 'categories'"),
        (lambda d: d.update(annotations={}), "'annotations' is not a list of objects"),
        (lambda d: d["categories"][0].pop("isthing"), r"categories\[0\] has no 'isthing' of 0 or 1"),
        (lambda d: d["annotations"][1].pop("image_id"), r"annotations\[1\] has no 'image_id'"),
        (lambda d: d["annotations"][1].update(file_name=3), r"annotations\[1\]: 'file_name' is a text, not 3"),
        (lambda d: d["annotations"][0].update(segments_info=7), "'segments_info' is not a list of objects"),
        (lambda d: d["annotations"][0]["segments_info"][1].pop("id"), r"segments_info\[1\] has no 'id'"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(id=2**24), "'id' is 16777216, and a colour is"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(area="a"), "'area' is a number of pixels"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(area=float("nan")), "'area' is a number of pixels"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(iscrowd="no"), "'iscrowd' is 0 or 1, not 'no'"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "is of image 1, which has its segments already"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(category_id=77), "no category of that id"),
        (lambda d: d["images"].pop(0), "has segments of images that it does not list"),
        (lambda d: d["annotations"][0].update(file_name="no.png"), "no such image: .*no.png"),
        (lambda d: d["annotations"][0].update(file_name="../train/000001.png"), "a segment of image 1 has no pixel"),
        (lambda d: d["images"][0].update(height=5), "is 128 x 128 pixels, but its annotation file says 128 x 5"),
    ],
)
def test_bad_files_get_one_sentence(shapes: Path, tmp_path: Path, change: Any, message: str) -> None:
    data = json.loads((shapes / "annotations" / "panoptic_train.json").read_text())
    change(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as error:
        PanopticDataset(shapes / "train", tmp_path / "bad.json", shapes / "panoptic_train")[0]
    assert "\n" not in str(error.value)


def test_missing_folders(shapes: Path, tmp_path: Path) -> None:
    annotations = shapes / "annotations" / "panoptic_train.json"
    with pytest.raises(UserError, match=r"folder .*panoptic_train with the PNGs of .* does not exist"):
        evaluate_coco_panoptic(annotations, annotations)  # the PNGs are not beside it
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        PanopticDataset(tmp_path / "no", annotations, shapes / "panoptic_train")
    with pytest.raises(UserError, match=r"none.json does not exist"):
        PanopticFiles(tmp_path / "none.json")
    with pytest.raises(UserError, match="does not have the categories that the model knows"):
        open_shapes(shapes, category_ids=[1, 2, 3])


def test_boxes_around_masks() -> None:
    masks = torch.zeros(3, 9, 13, dtype=torch.bool)
    masks[0, 2:5, 1:8], masks[1], masks[2, 8, 12] = True, True, True
    assert boxes_around(masks).tolist() == [[1, 2, 8, 5], [0, 0, 13, 9], [12, 8, 13, 9]]
    assert boxes_around(masks[:0]).shape == (0, 4)


# -------------------------------------------------------------------------------------------------- COCO's photographs


def test_round_trip_of_photographs(tmp_path: Path) -> None:
    """Annotation -> tensors -> files: the same PNG pixels and rows, and the quality of the truth itself is 1."""
    folder = REAL / "coco_panoptic2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set CONDINST_REAL)")
    annotations = folder / "annotations" / "panoptic.json"
    files = PanopticFiles(annotations, folder / "panoptic", truth=True)
    with PanopticWriter(tmp_path / "again.json", categories=files.categories) as writer:
        for image_id in files.image_ids:
            writer.add(files.images[image_id], files[image_id])
    again = PanopticFiles(tmp_path / "again.json", truth=True)
    assert len(again.image_ids) == 2
    for image_id in files.image_ids:
        name = files.rows[image_id]["file_name"]
        stored, written = (np.array(Image.open(f / name).convert("RGB")) for f in (folder / "panoptic", again.folder))
        assert np.array_equal(stored, written)
        assert again[image_id]["segments_info"] == files[image_id]["segments_info"]
    scores = evaluate_coco_panoptic(annotations, tmp_path / "again.json", folder / "panoptic")
    assert scores["All"]["pq"] == scores["Things"]["pq"] == scores["Stuff"]["pq"] == 1


def test_photographs_as_targets() -> None:
    """Segments are those that pycocotools-style areas and boxes tell of; their masks do not overlap."""
    folder = REAL / "coco_panoptic2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (set CONDINST_REAL)")
    dataset = PanopticDataset(folder / "images", folder / "annotations" / "panoptic.json", folder / "panoptic")
    assert (dataset.num_things, len(dataset.category_ids), len(dataset)) == (80, 133, 2)
    for image_id, (_, target) in zip(dataset.image_ids, (dataset[0], dataset[1]), strict=True):
        rows = dataset.files.rows[image_id]["segments_info"]
        assert target["masks"].sum(dim=(1, 2)).tolist() == [row["area"] for row in rows]
        assert target["masks"].sum(dim=0).max() == 1
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
        assert (target["boxes"] - torch.tensor(boxes)).abs().max() <= 1  # COCO's own boxes are off by one in places
        things, stuff = split_target(target, 80)
        assert len(things["labels"]) == sum(dataset.files.isthing[row["category_id"]] for row in rows)
        assert (stuff == -1).sum() == (dataset.files[image_id]["panoptic"] == 0).sum()
