"""The COCO reader against pycocotools, on odd and real folders, and a sentence for everything that can be wrong."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folder import Folder, block, odd_folder, real_folder, rle
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from condinst_edu.datasets.coco import CocoDataset, read_image
from condinst_edu.datasets.transforms import TrainTransform
from condinst_edu.errors import UserError


@pytest.fixture
def odd(tmp_path: Path) -> Folder:
    return odd_folder(tmp_path / "odd")


def check_against_pycocotools(folder: Folder, dataset: CocoDataset, capsys: pytest.CaptureFixture[str]) -> int:
    """Every image's objects equal the annotations that have area, in the file's order; returns how many there are."""
    coco = COCO(str(folder.annotations))
    capsys.readouterr()
    count = 0
    for i, image_id in enumerate(dataset.image_ids):
        image, target = dataset[i]
        assert image.shape == (3, *dataset.sizes[i])
        expected = [a for a in coco.imgToAnns[image_id] if a["segmentation"] and a["bbox"][2] * a["bbox"][3] > 0]
        expected = [a for a in expected if coco.annToMask(a).any()]
        assert target["image_id"] == image_id
        assert len(target["masks"]) == len(expected)
        for k, a in enumerate(expected):
            assert np.array_equal(target["masks"][k].numpy(), coco.annToMask(a).astype(bool))
            x, y, w, h = a["bbox"]
            assert torch.equal(target["boxes"][k], torch.tensor([x, y, x + w, y + h], dtype=torch.float32))
            assert dataset.category_ids[target["labels"][k] - 1] == a["category_id"]
            assert target["iscrowd"][k] == bool(a["iscrowd"])
        count += len(expected)
    return count


def test_odd_folder(odd: Folder, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    dataset = CocoDataset(odd.images, odd.annotations)
    assert capsys.readouterr().out == ""
    assert dataset.category_ids == [3, 17, 90]
    assert dataset.class_names == ["car", "cat", "kite"]
    assert dataset.image_ids == [7, 0, 12, 5, 9]
    assert dataset.dropped == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{odd.annotations}: left out 3 annotations with an empty box or mask"
    ]
    assert check_against_pycocotools(odd, dataset, capsys) == 8
    image, target = dataset[3]
    assert image.dtype == torch.uint8
    assert {k: (v.shape, v.dtype) for k, v in target.items() if k != "image_id"} == {
        "boxes": ((0, 4), torch.float32),
        "labels": ((0,), torch.int64),
        "masks": ((0, 20, 30), torch.bool),
        "iscrowd": ((0,), torch.bool),
    }
    assert np.array_equal(image.numpy(), np.array(Image.open(odd.images / "5.png")).transpose(2, 0, 1))


def test_training_leaves_out_images_without_objects(odd: Folder) -> None:
    dataset = CocoDataset(odd.images, odd.annotations, keep_empty=False)
    assert dataset.image_ids == [7, 0, 9]
    assert [len(dataset[i][1]["boxes"]) for i in range(3)] == [3, 3, 1]
    assert dataset[-1][1]["image_id"] == 9
    with pytest.raises(IndexError):
        dataset[3]


def test_first(odd: Folder) -> None:
    dataset = CocoDataset(odd.images, odd.annotations)
    few = dataset.first(2)
    assert (len(few), few.image_ids, len(dataset)) == (2, [7, 0], 5)
    assert torch.equal(few[-1][1]["masks"], dataset[1][1]["masks"])
    with pytest.raises(IndexError):
        few[2]


def test_outlines(odd: Folder) -> None:
    """Polygons as the file has them, RLEs as the masks were read; without outlines, what they were before."""
    masks, outlines = (CocoDataset(odd.images, odd.annotations, outlines=o) for o in (False, True))
    outlines = pickle.loads(pickle.dumps(outlines))
    kinds = []
    for i, size in enumerate(masks.sizes):
        target, other = masks.target(i), outlines.target(i)
        expected = target.pop("masks")
        found = other.pop("segmentations")
        assert target.keys() == other.keys()
        assert all(torch.equal(target[name], other[name]) for name in ("boxes", "labels", "iscrowd"))
        assert len(found) == len(expected)
        for segmentation, mask in zip(found, expected, strict=True):
            kinds.append(type(segmentation))
            if isinstance(segmentation, list):
                segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))["counts"]
            decoded = mask_utils.decode({"size": size, "counts": segmentation})
            assert np.array_equal(decoded, mask.numpy())
    assert (kinds.count(list), kinds.count(bytes)) == (4, 4)
    polygons = outlines.target(0)["segmentations"][2]
    assert [p.tolist() for p in polygons] == odd.data["annotations"][2]["segmentation"]


def test_outlines_in_training(odd: Folder) -> None:
    """On images with both kinds, RLEs equal the resized masks, polygons lie on them, and the order is the file's."""
    odd.data["annotations"][5]["iscrowd"] = 0  # its image holds two RLEs then ...
    odd.data["annotations"].append({**odd.data["annotations"][0], "id": 99, "image_id": 0})  # ... and a polygon
    odd.data["annotations"].insert(0, {**odd.data["annotations"][0], "id": 98, "image_id": 0})
    odd.write()
    masks, outlines = (CocoDataset(odd.images, odd.annotations, outlines=o) for o in (False, True))
    for stride in (None, 4):
        transform = TrainTransform((50,), 90, 1.0, 1.0, stride)
        for i in range(len(masks)):
            (image, expected), (same, found) = transform(*masks[i], seed=1), transform(*outlines[i], seed=1)
            assert torch.equal(image, same)
            assert expected.keys() == found.keys()
            assert torch.equal(expected["labels"], found["labels"])
            assert torch.equal(expected["boxes"], found["boxes"])
            assert found["masks"].shape == expected["masks"].shape
            if masks.image_ids[i] == 0:
                assert torch.equal(found["masks"][1:4], expected["masks"][1:4])
                assert len(found["masks"]) == 5
            assert (found["masks"] != expected["masks"]).sum() <= 0.02 * found["masks"].numel()
            if stride is not None:
                torch.testing.assert_close(found["centers"], expected["centers"], rtol=0, atol=1)


@pytest.mark.parametrize("name", ["nuts18", "coco_panoptic2"])
def test_real_folders(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = real_folder(name)
    dataset = CocoDataset(folder.images, folder.annotations)
    assert check_against_pycocotools(folder, dataset, capsys) == len(folder.data["annotations"])


def test_cache_gives_the_same_and_no_shared_memory(odd: Folder) -> None:
    dataset = CocoDataset(odd.images, odd.annotations, cache=True)
    image, target = dataset[0]
    expected, boxes = image.clone(), target["boxes"].clone()
    (odd.images / "7.png").unlink()  # from here on it can only come from memory
    for _ in range(2):
        image, target = dataset[0]
        assert torch.equal(image, expected)
        assert torch.equal(target["boxes"], boxes)
        image.zero_()
        target["boxes"].zero_()
        target["masks"].zero_()
    assert dataset[0][1]["masks"].any()


def test_survives_pickling(odd: Folder) -> None:
    """Loader processes are started with a pickle of the data set where the system cannot fork."""
    dataset = CocoDataset(odd.images, odd.annotations)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1][1]["masks"], dataset[1][1]["masks"])


def test_category_ids_of_a_checkpoint(odd: Folder) -> None:
    dataset = CocoDataset(odd.images, odd.annotations, category_ids=[1, 3, 17, 90])
    assert dataset.class_names == ["category 1", "car", "cat", "kite"]
    assert dataset[0][1]["labels"].tolist() == [4, 2, 2]
    with pytest.raises(UserError, match=r"category 17 \(cat\), which is none of the 2 categories"):
        CocoDataset(odd.images, odd.annotations, category_ids=[3, 90])


def test_missing_files(odd: Folder) -> None:
    for number in (0, 12):
        (odd.images / f"{number}.png").unlink()
    with pytest.raises(UserError) as error:
        CocoDataset(odd.images, odd.annotations)
    assert str(error.value) == f"2 of 5 images are missing in {odd.images}, first: 0.png (skip_missing leaves them out)"
    dataset = CocoDataset(odd.images, odd.annotations, skip_missing=True)
    assert dataset.image_ids == [7, 5, 9]
    assert [len(dataset[i][1]["boxes"]) for i in range(3)] == [3, 0, 1]


def test_images_in_subfolders(odd: Folder) -> None:
    (odd.images / "inner").mkdir()
    (odd.images / "7.png").rename(odd.images / "inner" / "7.png")
    odd.data["images"][0]["file_name"] = "inner/7.png"
    assert len(CocoDataset(odd.images, odd.write().annotations)[0][1]["boxes"]) == 3


# ------------------------------------------------------------------------------------------------------------- images


def test_image_modes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    rgb.putalpha(77)
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
        path = tmp_path / (f"{mode}.tiff" if mode == "CMYK" else f"{mode}.png")
        rgb.convert(mode).save(path)
        expected = np.array(rgb.convert(mode).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(read_image(path).numpy(), expected)
    deep = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png").numpy(), np.stack([(deep >> 8).astype(np.uint8)] * 3))
    palette = rgb.convert("RGB").convert("P")
    palette.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    assert np.array_equal(read_image(tmp_path / "clear.png"), np.array(palette.convert("RGB")).transpose(2, 0, 1))


def test_no_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # "rotate by 90 degrees to show"
    Image.new("RGB", (9, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", (6, 9)).shape == (3, 6, 9)


def test_broken_images(odd: Folder) -> None:
    dataset = CocoDataset(odd.images, odd.annotations)
    whole = (odd.images / "7.png").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"no image at all", b"\xff\xd8\xff\xe0" + bytes(50)):
        (odd.images / "7.png").write_bytes(content)
        with pytest.raises(UserError, match=r"7\.png cannot be read as an image: .*\.$") as error:
            dataset[0]
        assert "\n" not in str(error.value)
    Image.new("RGB", (40, 60)).save(odd.images / "7.png")
    with pytest.raises(UserError, match=r"7\.png is 40 x 60 pixels, but its annotation file says 60 x 40\."):
        dataset[0]
    with pytest.raises(UserError, match="no such image: nowhere"):
        read_image("nowhere")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 14_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


# ----------------------------------------------------------------------------------------------------- what is wrong


def test_missing_folder_and_file(odd: Folder) -> None:
    with pytest.raises(UserError, match=r"image folder nowhere does not exist"):
        CocoDataset("nowhere", odd.annotations)
    with pytest.raises(UserError, match=r"annotation file nowhere\.json does not exist"):
        CocoDataset(odd.images, "nowhere.json")
    with pytest.raises(UserError, match=r"annotation file .* is no file"):
        CocoDataset(odd.images, odd.images)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"images": [\n{"id": 1, "fi', r"is cut off at line 2, column 11"),
        ('{"images": [\n1, 2,\n', r"is cut off at line 3, column 1"),
        ("", r"is cut off at line 1, column 1"),
        ('{"images": [}, "annotations": []}', r"is no valid JSON .* at line 1, column 13"),
        ("\x00", r"is no valid JSON"),
        ("[" * 100_000, r"cannot be read as JSON"),
        ("[]", r"is no COCO file: expected an object with images, annotations and categories"),
        ('{"images": [], "annotations": []}', r"is no COCO file of annotated images: it has no 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', r"'images' is not a list of objects"),
        ('{"images": [3], "annotations": [], "categories": []}', r"'images' is not a list of objects"),
        ('{"images": [], "annotations": [], "categories": []}', r"'categories' is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', r"lists no image"),
    ],
)
def test_no_coco_file(odd: Folder, content: str, sentence: str) -> None:
    odd.annotations.write_text(content)
    with pytest.raises(UserError, match=sentence) as error:
        CocoDataset(odd.images, odd.annotations)
    assert str(odd.annotations) in str(error.value)


def test_binary_annotation_file(odd: Folder) -> None:
    odd.annotations.write_bytes(b"\xff\xfe\x80\x81")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        CocoDataset(odd.images, odd.annotations)


def put(place: str, index: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[place][index].update(fields)


def take(place: str, index: int, field: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data[place][index].pop(field)


def shape(segmentation: Any) -> Callable[[dict[str, Any]], None]:
    return put("annotations", 3, segmentation=segmentation)


RLE = rle(block((33, 47), 5, 6, 25, 30))
CUT = {"size": [33, 47], "counts": RLE["counts"][:-3]}
WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("annotations", 2, image_id=99), r"annotations\[2\]: 'image_id' is 99, but the file has no image of that id"),
    (put("annotations", 2, category_id=4), r"annotations\[2\]: 'category_id' is 4, but the file has no category of"),
    (put("annotations", 2, image_id="7"), r"annotations\[2\]: 'image_id' is an integer, not '7'"),
    (take("annotations", 2, "category_id"), r"annotations\[2\] has no 'category_id'"),
    (put("annotations", 2, id=4), r"annotations has the id 4 twice"),
    (put("images", 1, id=7), r"images has the id 7 twice"),
    (put("categories", 1, id=90), r"categories has the id 90 twice"),
    (take("images", 1, "id"), r"images\[1\] has no 'id'"),
    (take("images", 1, "file_name"), r"images\[1\]: 'file_name' is a text, not None"),
    (take("images", 1, "height"), r"images\[1\] has no 'height'"),
    (put("images", 1, width=0), r"images\[1\]: 'width' is 0, but an image has at least one pixel"),
    (put("images", 1, width=10**9), r"images\[1\] has 33000000000 pixels, more than the 89478485 that are read"),
    (put("images", 1, width=47.5), r"images\[1\]: 'width' is an integer, not 47.5"),
    (take("categories", 0, "name"), r"categories\[0\]: 'name' is a text, not None"),
    (put("annotations", 0, iscrowd=2), r"annotations\[0\]: 'iscrowd' is 0 or 1, not 2"),
    (take("annotations", 0, "bbox"), r"annotations\[0\]: 'bbox' is four finite numbers x, y, width, height, not None"),
    (put("annotations", 0, bbox=[1, 2, 3]), r"'bbox' is four finite numbers .*, not \[1, 2, 3\]"),
    (put("annotations", 0, bbox=[1, 2, float("nan"), 3]), r"'bbox' is four finite numbers .*, not \[1, 2, nan, 3\]"),
    (put("annotations", 0, bbox=[1, 2, -4, 3]), r"'bbox' is four finite numbers"),
    (put("annotations", 0, bbox=[1, 2, "4", 3]), r"'bbox' is four finite numbers"),
    (put("annotations", 0, area=-1), r"annotations\[0\]: 'area' is a number of pixels, not -1"),
    (take("annotations", 3, "segmentation"), r"annotations\[3\] has no 'segmentation'"),
    (shape("polygon"), r"annotations\[3\]: 'segmentation' is a list of polygons or an RLE, not 'polygon'"),
    (shape([1, 2, 3, 4, 5, 6]), r"annotations\[3\]: a polygon of 'segmentation' is a list x, y, x, y, ..., not 1"),
    (shape([[1, 2, 3, 4, 5, 6, 7]]), r"annotations\[3\]: a polygon .* has an odd number of coordinates \(7\)"),
    (shape([[1, 2, 3, 4]]), r"annotations\[3\]: a polygon .* has 2 points, but needs at least 3"),
    (shape([[1, 2, 3, 4, 5, float("inf")]]), r"has a coordinate that is no finite number"),
    (shape([[1, 2, 3, 4, 5, None]]), r"has a coordinate that is no finite number"),
    (shape([[1, 2, 3, 4, 5, "6"]]), r"has a coordinate that is no finite number"),
    (shape([[1, 2, 3, 4, 5, [6, 7]]]), r"has a coordinate that is no finite number"),
    (shape([[1, 2, 3, 4, 5, -1e9]]), r"reaches -1e\+09, far outside the image of 47 x 33 pixels"),
    (shape({**RLE, "size": [47, 33]}), r"the RLE has size \[47, 33\], but the image is \[33, 47\]"),
    (shape({"counts": RLE["counts"]}), r"the RLE has size None, but the image is \[33, 47\]"),
    (shape({"size": [33, 47], "counts": [1000, 10]}), r"the 'counts' of the RLE are broken, they do not add up"),
    (shape({"size": [33, 47], "counts": [1561, -10]}), r"the 'counts' of the RLE are broken"),
    (shape({"size": [33, 47], "counts": [None]}), r"the 'counts' of the RLE are broken"),
    (shape({"size": [33, 47]}), r"the 'counts' of the RLE are broken"),
    (shape(CUT), r"the 'counts' of the RLE are broken"),
    (shape({"size": [33, 47], "counts": "\xe9\xff" * 9}), r"the 'counts' of the RLE are broken"),
    (shape({"size": [33, 47], "counts": "_" * 30}), r"the 'counts' of the RLE are broken"),
    (shape({"size": [33, 47], "counts": "o" * 30 + "0"}), r"the 'counts' of the RLE are broken"),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG)
def test_what_is_wrong_in_the_file(odd: Folder, spoil: Callable[[dict[str, Any]], None], sentence: str) -> None:
    spoil(odd.data)
    with pytest.raises(UserError, match=sentence) as error:
        CocoDataset(odd.images, odd.write().annotations)
    assert str(error.value).startswith(str(odd.annotations))
    assert "\n" not in str(error.value)


def test_what_may_be_left_out(odd: Folder) -> None:
    for a in odd.data["annotations"]:
        for field in ("id", "area", "iscrowd"):
            a.pop(field)
    assert not CocoDataset(odd.images, odd.write().annotations)[1][1]["iscrowd"].any()


def test_no_object_to_learn_from(odd: Folder) -> None:
    odd.data["annotations"] = []
    with pytest.raises(UserError, match="lists no image with an object to learn from"):
        CocoDataset(odd.images, odd.write().annotations, keep_empty=False)


def test_long_values_are_cut_in_errors(odd: Folder) -> None:
    odd.data["annotations"][0]["bbox"] = list(range(1000))
    with pytest.raises(UserError) as error:
        CocoDataset(odd.images, odd.write().annotations)
    assert len(str(error.value)) < 300


def test_random_rles_are_read_as_pycocotools_reads_them(tmp_path: Path) -> None:
    """Compressed RLEs of long and short runs, which our check of their counts must not refuse."""
    rng = np.random.default_rng(2)
    size = (300, 400)
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    masks = [rng.random(size) < p for p in (0.001, 0.03, 0.5, 0.97, 1.0)]
    masks += [block(size, 0, 0, 300, 400), block(size, 299, 399, 300, 400), block(size, 0, 0, 1, 1)]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 300, "width": 400}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "segmentation": rle(m)} for m in masks],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    found = CocoDataset(tmp_path, tmp_path / "a.json")[0][1]["masks"]
    assert np.array_equal(found.numpy(), np.stack(masks))
