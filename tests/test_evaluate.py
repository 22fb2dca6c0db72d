"""COCO AP against numbers of pycocotools itself, encoded detections, evaluation, and the ceiling of a stride."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import REAL, ROOT, Folder, annotation, block, odd_folder, random_folder, real_folder, rle
from helpers import seeded, tiny_condinst, tiny_fcos
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor, nn

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.evaluate import (
    KINDS,
    STATS,
    ceiling_logits,
    coco_ap,
    detect_all,
    encode_masks,
    encode_results,
    evaluate,
    mask_ceiling,
    report,
)
from condinst_edu.errors import UserError

GOLDEN = Path(os.environ.get("CONDINST_GOLDEN", ROOT.parent / "shared" / "golden")) / "coco_eval"


def perfect_results(dataset: CocoDataset, score: float = 1.0) -> list[dict[str, Any]]:
    results = []
    for i in range(len(dataset)):
        target = dataset.target(i)
        keep = ~target["iscrowd"]
        detections = {key: target[key][keep] for key in ("boxes", "labels", "masks")}
        detections["scores"] = torch.full((int(keep.sum()),), score)
        results += encode_results(detections, target["image_id"], dataset.category_ids)
    return results


class Oracle(nn.Module):
    """Answers with the ground truth of each image in turn, and records what it was asked."""

    def __init__(self, dataset: CocoDataset) -> None:
        super().__init__()
        self.dataset, self.asked = dataset, 0
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: list[Tensor], output_sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        target = self.dataset.target(self.asked)
        assert output_sizes == [self.dataset.sizes[self.asked]]
        assert images[0].dtype == torch.float32
        assert images[0].max() <= 1
        self.sizes.append((images[0].shape[1], images[0].shape[2]))
        self.asked += 1
        return [{**target, "scores": torch.ones(len(target["boxes"]))}]


# ----------------------------------------------------------------------------------------------------------- encoding


def test_encode_results() -> None:
    masks = torch.rand(5, 17, 23, generator=seeded(0)) < 0.4
    masks[3] = False
    boxes = torch.rand(5, 4, generator=seeded(1)) + torch.tensor([0, 0, 2, 2])
    detections = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 2, 1]), "scores": torch.rand(5), "masks": masks}
    results = encode_results(detections, 42, [3, 17, 90])
    assert json.loads(json.dumps(results)) == results
    assert [result["category_id"] for result in results] == [3, 17, 90, 17, 3]
    assert {result["image_id"] for result in results} == {42}
    for k, result in enumerate(results):
        assert result["segmentation"] == rle(masks[k].numpy())
        assert np.array_equal(mask_utils.decode(result["segmentation"]), masks[k].numpy())
        assert result["score"] == detections["scores"][k].item()
        x, y, w, h = result["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], boxes[k], rtol=1e-6)
    without = encode_results({k: v for k, v in detections.items() if k != "masks"}, 42, [3, 17, 90])
    assert all("segmentation" not in result for result in without)
    assert encode_results({k: v[:0] for k, v in detections.items()}, 42, [3, 17, 90]) == []


# ---------------------------------------------------------------------------------------------------- average precision


@pytest.mark.parametrize("name", ["nuts18", "coco_panoptic2", "coco_stuff10"])
@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_against_pycocotools(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All nine numbers and those per class to 1e-9, on detections with ties, duplicates and crowds."""
    if not (GOLDEN.is_dir() and REAL.is_dir()):
        pytest.skip(f"{GOLDEN} or {REAL} does not exist: set CONDINST_GOLDEN and CONDINST_REAL")
    folder = real_folder(name)
    expected = json.loads((GOLDEN / "results.json").read_text())["results"]
    [numbers] = [r for r in expected if r["dataset"] == name and r["iouType"] == kind]
    results = json.loads((GOLDEN / numbers["dt"]).read_text())
    scores = coco_ap(folder.annotations, results, (kind,), plain=True)
    assert list(scores) == [KINDS[kind]]
    found = scores[KINDS[kind]]
    for key in STATS:
        assert found[key] == pytest.approx(numbers["stats"][key], abs=1e-9)
    names = {category["id"]: category["name"] for category in folder.data["categories"]}
    per_class = {names[int(i)]: ap for i, ap in numbers["ap_per_category"].items()}
    assert {name: ap for name, ap in found["per_class"].items() if ap >= 0} == pytest.approx(per_class, abs=1e-9)
    assert capsys.readouterr().out == ""
    # Nothing but an object with id 0 and sizes of detections makes a difference.
    usual = coco_ap(folder.annotations, results, (kind,))[KINDS[kind]]
    if name != "coco_panoptic2":
        assert usual["AP"] == pytest.approx(found["AP"], abs=1e-12)


@pytest.fixture
def odd(tmp_path: Path) -> CocoDataset:
    """The odd folder without the annotations that are dropped, which no detection could match."""
    folder = odd_folder(tmp_path / "odd")
    folder.data["annotations"] = [a for a in folder.data["annotations"] if a["id"] not in (12, 13, 14)]
    return CocoDataset(folder.images, folder.write().annotations)


def test_perfect_results(odd: CocoDataset) -> None:
    """Also that an object whose annotation has id 0 can be found, which COCOeval as it comes denies."""
    scores = coco_ap(odd.annotation_file, perfect_results(odd))
    for kind in ("mask", "box"):
        assert scores[kind]["AP"] == scores[kind]["AP50"] == scores[kind]["AR100"] == pytest.approx(1)
        assert scores[kind]["per_class"] == pytest.approx({"car": 1, "cat": 1, "kite": 1})
        assert scores[kind]["APl"] == -1
    assert coco_ap(odd.annotation_file, perfect_results(odd), plain=True)["mask"]["per_class"]["kite"] == 0


def test_inputs_stay_as_they_are(odd: CocoDataset) -> None:
    data, results = json.loads(Path(odd.annotation_file).read_text()), perfect_results(odd)
    before = json.dumps([data, results])
    assert coco_ap(data, results) == coco_ap(odd.annotation_file, results)
    assert json.dumps([data, results]) == before


def test_no_results(odd: CocoDataset) -> None:
    scores = coco_ap(odd.annotation_file, [])
    for kind in ("mask", "box"):
        assert scores[kind]["AP"] == scores[kind]["AR100"] == 0
        assert scores[kind]["per_class"] == {"car": 0, "cat": 0, "kite": 0}


def test_nothing_to_find() -> None:
    data: dict[str, Any] = {"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}], "annotations": []}
    data["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]
    result = {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1, 1, 3, 3]}
    scores = coco_ap(data, [result], ("bbox",))
    assert scores["box"]["AP"] == -1
    assert scores["box"]["per_class"] == {"a (1)": -1, "a (2)": -1}


def test_a_detection_in_a_crowd_is_no_error(odd: CocoDataset) -> None:
    """However often a crowd is hit; the same detections elsewhere cost precision."""
    results = perfect_results(odd, score=0.5)
    in_crowd = {"image_id": 12, "category_id": 3, "score": 0.9, "bbox": [3, 3, 5, 5]}
    in_crowd["segmentation"] = rle(block((20, 30), 3, 3, 8, 8))
    assert coco_ap(odd.annotation_file, results + [in_crowd] * 5)["mask"]["AP"] == pytest.approx(1)
    outside = {**in_crowd, "segmentation": rle(block((20, 30), 15, 20, 19, 25))}
    assert coco_ap(odd.annotation_file, [*results, outside])["mask"]["AP"] < 0.95


def test_images_that_count(odd: CocoDataset) -> None:
    results = [result for result in perfect_results(odd) if result["image_id"] == 7]
    assert coco_ap(odd.annotation_file, results)["mask"]["AP"] < 0.7
    assert coco_ap(odd.annotation_file, results, image_ids=[7])["mask"]["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match="results of image 4, which the annotations do not have"):
        coco_ap(odd.annotation_file, [{**results[0], "image_id": 4}])


def test_size_of_a_detection_is_that_of_its_mask() -> None:
    """A thin false mask in a large box counts among the small ones; plain pycocotools takes the box."""
    size = (200, 200)
    square, line = block(size, 10, 10, 40, 40), np.eye(200, dtype=bool)
    data = {
        "images": [{"id": 1, "file_name": "a", "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [annotation(1, 1, 1, [10, 10, 30, 30], rle(square))],
    }
    shapes = [(square, [10, 10, 30, 30], 0.5), (line, [0, 0, 200, 200], 0.9)]
    results = [
        {"image_id": 1, "category_id": 1, "score": score, "bbox": box, "segmentation": rle(mask)}
        for mask, box, score in shapes
    ]
    assert coco_ap(data, results)["mask"]["APs"] == pytest.approx(0.5)
    assert coco_ap(data, results, plain=True)["mask"]["APs"] == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return random_folder(tmp_path_factory.mktemp("data") / "images", 5)


def test_evaluate(odd: CocoDataset, capsys: pytest.CaptureFixture[str]) -> None:
    model = Oracle(odd).train()
    scores = evaluate(model, odd, progress=False)
    assert model.training
    assert model.sizes == odd.sizes
    assert scores["mask"]["AP"] == scores["box"]["AP"] == pytest.approx(1)
    assert capsys.readouterr().out == ""
    model = Oracle(odd)
    evaluate(model, odd, short_side=64, max_size=90, progress=True, workers=1)
    assert model.sizes == [(60, 90), (63, 90), (60, 90), (60, 90), (60, 90)]
    assert "5/5" in capsys.readouterr().out


def test_evaluate_on_part_of_the_images(odd: CocoDataset) -> None:
    part = CocoDataset(odd.image_folder, odd.annotation_file, keep_empty=False)
    assert evaluate(Oracle(part), part, progress=False)["mask"]["AP"] == pytest.approx(1)
    assert evaluate(Oracle(part), part, progress=False)["mask"]["AP"] == pytest.approx(1)


def test_real_models(folder: Folder) -> None:
    dataset = CocoDataset(folder.images, folder.annotations)
    for model, kinds in ((tiny_fcos(2), {"box"}), (tiny_condinst(2), {"box", "mask"})):
        results = detect_all(model, dataset, 32, 100, progress=False)
        scores = evaluate(model, dataset, short_side=32, max_size=100, progress=False)
        assert set(scores) == (kinds if results else {"box", "mask"})
        assert 0 <= scores["box"]["AP"] < 0.2


def test_report(odd: CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = coco_ap(odd.annotation_file, perfect_results(odd))
    report(scores, tmp_path / "deep" / "result.json")
    assert json.loads((tmp_path / "deep" / "result.json").read_text()) == scores
    text = capsys.readouterr().out
    assert all(word in text for word in ("box", "mask", "AP50", "kite", "100.0", "-"))
    report({"box": scores["box"]})
    assert "mask" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ ceiling


def test_ceiling_logits() -> None:
    masks = torch.rand(2, 33, 50, generator=seeded(0)) < 0.5
    found = ceiling_logits(masks, 4)
    assert found.shape == (2, 16, 16)
    for i in range(16):
        for j in range(16):
            y, x = 4 * i + 2, 4 * j + 2
            expected = masks[:, y, x] if y < 33 and x < 50 else torch.zeros(2, dtype=torch.bool)
            assert torch.equal(found[:, i, j], torch.where(expected, 20.0, -20.0))


def test_mask_ceiling(folder: Folder) -> None:
    dataset = CocoDataset(folder.images, folder.annotations)
    scores = [mask_ceiling(dataset, stride) for stride in (1, 2, 4, 8)]
    aps = [s["mask"]["AP"] for s in scores]
    assert aps[0] == pytest.approx(1)
    assert all(s["box"]["AP"] == pytest.approx(1) for s in scores)
    assert aps == sorted(aps, reverse=True)
    assert 0.4 < aps[2] < 0.9
    assert mask_ceiling(dataset, 4, 192, 1000)["mask"]["AP"] > aps[2]


def test_mask_ceiling_on_real_images() -> None:
    real = real_folder("coco_panoptic2")
    scores = mask_ceiling(CocoDataset(real.images, real.annotations), 4)
    assert scores["box"]["AP"] == pytest.approx(1)
    assert 0.65 < scores["mask"]["AP"] < 0.8


def test_large_square_survives_a_coarse_stride(tmp_path: Path) -> None:
    """Half a cell at most is lost at each edge, in the right place: no shift between sampling and upsampling."""
    Image.new("RGB", (256, 256)).save(tmp_path / "a.png")
    mask = block((256, 256), 32, 32, 224, 224)
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 256, "width": 256}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [annotation(1, 1, 1, [32, 32, 192, 192], rle(mask))],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    dataset = CocoDataset(tmp_path, tmp_path / "a.json")
    for stride in (2, 4, 8, 16):
        assert mask_ceiling(dataset, stride)["mask"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53)])
def test_masks_are_encoded_as_pycocotools_does(size: tuple[int, int]) -> None:
    """Byte for byte: noise of all densities, blocks at each edge and corner, full columns, full and empty masks."""
    rng = np.random.default_rng(0)
    masks = [rng.random(size) < share for share in (0, 0.001, 0.05, 0.5, 0.95, 1)]
    for y1, x1, y2, x2 in (
        (0, 0, 1, 1),
        (0, 3, 37, 9),
        (30, 40, 37, 53),
        (36, 52, 37, 53),
        (5, 0, 6, 53),
        (0, 52, 37, 53),
    ):
        part = np.zeros(size, bool)
        part[y1:y2, x1:x2] = True
        masks += [part, ~part, part & (rng.random(size) < 0.7)]
    found = encode_masks(torch.from_numpy(np.stack(masks)))
    for mask, code in zip(masks, found, strict=True):
        expected = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code == {"size": list(size), "counts": expected["counts"].decode()}
    strided = torch.from_numpy(np.stack(masks)).mT
    assert encode_masks(strided)[3] == encode_masks(strided.contiguous())[3]
    assert encode_masks(torch.zeros(0, *size, dtype=torch.bool)) == []
