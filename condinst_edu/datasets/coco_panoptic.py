"""COCO's panoptic files: read and checked, written, and as a torch data set to train and evaluate on.

A JSON file lists the segments of each image, and a PNG beside it says which segment a pixel belongs to: its colour is
the segment's id, R + 256 G + 65536 B, and 0 is void. No pixel belongs to two segments.

Legend: M segments of an image, K classes of things, H, W image.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from condinst_edu.datasets.coco import CocoDataset, read_image, with_file
from condinst_edu.datasets.coco_json import Item, check_image, check_integer, check_text, read_json, unique_ids
from condinst_edu.datasets.shapes_coco import id_colors
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.layers.images import Size
from condinst_edu.panoptic import Panoptic

PARTS = ("images", "annotations", "categories")


class PanopticFiles:
    """A panoptic JSON file, checked, and the segment ids of its images, read when they are asked for.

    folder: of the PNGs; by default the file's name without .json. truth: the file must have categories, and its
    segments an area; of a prediction nothing but the annotations is read.

    Attributes: `path`; `image_ids`; `rows` {image id: its annotation}; `images` {image id: its entry}; `categories`;
    `isthing` {category id: bool}. files[image_id] -> panoptic (H, W) int64 and segments_info, as they are stored.
    Images are counted from 1 where their ids are texts (`number_images`).
    Errors: UserError, one sentence, for whatever is wrong with the files.
    """

    def __init__(self, path: str | Path, folder: str | Path | None = None, truth: bool = False) -> None:
        self.path = Path(path)
        data = check_panoptic(read_json(path), str(path), truth)
        self.folder = Path(folder) if folder is not None else self.path.with_suffix("")
        if not self.folder.is_dir():
            raise UserError(f"folder {self.folder} with the PNGs of {path} does not exist or is no folder.")
        self.rows: dict[int, Item] = {row["image_id"]: row for row in data["annotations"]}
        self.images: dict[int, Item] = {image["id"]: image for image in data["images"]}
        self.categories = data["categories"]
        self.isthing = {c["id"]: bool(c["isthing"]) for c in self.categories}
        self.image_ids = list(self.rows)

    def __getitem__(self, image_id: int) -> Panoptic:
        if image_id not in self.rows:
            raise UserError(f"{self.path} has no segments of image {image_id}.")
        row, image = self.rows[image_id], self.images.get(image_id)
        size = (image["height"], image["width"]) if image else None
        return {"panoptic": read_ids(self.folder / row["file_name"], size), "segments_info": row["segments_info"]}


def read_ids(path: str | Path, size: Size | None = None) -> Tensor:
    """Segment ids (H, W) int64 of a panoptic PNG; size, errors: as of `read_image`."""
    red, green, blue = read_image(path, size).to(torch.int64)
    return red + 256 * green + 65536 * blue


def check_panoptic(data: Any, name: str, truth: bool) -> dict[str, list[Item]]:
    """Images, annotations and categories of a panoptic file if fields, ids and references are right.

    Of a prediction the annotations alone. Errors: UserError names the first thing that is not right.
    """
    for key in ("annotations", "categories") if truth else ("annotations",):
        if not (isinstance(data, dict) and key in data):
            raise UserError(f"{name} is no COCO panoptic file: it has no '{key}'.")
    lists = {key: data.get(key, []) if truth or key == "annotations" else [] for key in PARTS}
    for key, rows in lists.items():
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise UserError(f"{name}: '{key}' is not a list of objects.")
    number_images(lists, name)
    for i, image in enumerate(lists["images"]):
        check_image(image, f"{name}: images[{i}]")
    for i, category in enumerate(lists["categories"]):
        check_integer(category, "id", f"{name}: categories[{i}]")
        if category.get("isthing") not in (0, 1):
            raise UserError(f"{name}: categories[{i}] has no 'isthing' of 0 or 1.")
    for key in ("images", "categories"):
        unique_ids(lists[key], f"{name}: {key}")
    known = {c["id"] for c in lists["categories"]} if truth else None
    seen: set[int] = set()
    for i, row in enumerate(lists["annotations"]):
        check_row(row, known, f"{name}: annotations[{i}]")
        if row["image_id"] in seen:
            raise UserError(f"{name}: annotations[{i}] is of image {row['image_id']}, which has its segments already.")
        seen.add(row["image_id"])
    return lists


def number_images(lists: dict[str, list[Item]], name: str) -> None:
    """Images that are named by a text, as in Mapillary's and Cityscapes' files, are numbered in their order, in place.

    Errors: UserError where two have the same name, or a segment's image is not listed.
    """
    names = [image.get("id") for image in lists["images"]]
    if not (names and all(isinstance(text, str) for text in names)):
        return
    numbers = {text: number for number, text in enumerate(names, start=1)}
    for number, image in enumerate(lists["images"], start=1):
        if numbers[image["id"]] != number:
            raise UserError(f"{name}: images has the id {image['id']} twice.")
        image["id"] = number
    for i, row in enumerate(lists["annotations"]):
        if isinstance(row.get("image_id"), str):
            if row["image_id"] not in numbers:
                raise UserError(f"{name}: annotations[{i}] is of image {row['image_id']}, which is not listed.")
            row["image_id"] = numbers[row["image_id"]]


def segments_of(numbers: NDArray[np.int64], category: Callable[[int], tuple[int, bool] | None]) -> Panoptic:
    """A map (H, W) of numbers, one for each segment, as panoptic annotation.

    category: of a number, (category id, whether it is a crowd), or None for what belongs to no segment. Ids are the
    numbers and 1.
    """
    counts = np.bincount(numbers.ravel())
    ids = np.zeros(len(counts), np.int64)
    info: list[Item] = []
    for number in np.flatnonzero(counts).tolist():
        kind = category(number)
        if kind is not None:
            ids[number] = number + 1
            info.append(
                {"id": number + 1, "category_id": kind[0], "iscrowd": int(kind[1]), "area": int(counts[number])}
            )
    return {"panoptic": torch.from_numpy(ids[numbers]), "segments_info": info}


def check_row(row: Item, known: set[int] | None, where: str) -> None:
    """UserError unless an annotation names its image, its PNG and its segments; known: categories of the truth."""
    check_integer(row, "image_id", where)
    check_text(row, "file_name", where)
    segments = row.get("segments_info")
    if not (isinstance(segments, list) and all(isinstance(s, dict) for s in segments)):
        raise UserError(f"{where}: 'segments_info' is not a list of objects.")
    for k, segment in enumerate(segments):
        for field in ("id", "category_id"):
            check_integer(segment, field, f"{where}: segments_info[{k}]")
        if not 0 < segment["id"] < 2**24:
            raise UserError(f"{where}: segments_info[{k}]: 'id' is {segment['id']}, and a colour is 1 to 16777215.")
        if known is None:
            continue
        if type(segment.get("area")) not in (int, float) or not 0 <= segment["area"] < math.inf:
            raise UserError(f"{where}: segments_info[{k}]: 'area' is a number of pixels.")
        if segment.get("iscrowd", 0) not in (0, 1):
            raise UserError(f"{where}: segments_info[{k}]: 'iscrowd' is 0 or 1, not {segment['iscrowd']!r}.")
        if segment["category_id"] not in known:
            raise UserError(
                f"{where}: segments_info[{k}]: 'category_id' is {segment['category_id']}, but the file has no category "
                "of that id."
            )


class PanopticWriter:
    """Writes results as COCO panoptic files: a PNG for each image at once, the JSON file when the block ends.

        with PanopticWriter(json_path, folder, categories) as writer:
            writer.add({"id": 7, "file_name": "7.jpg", "height": 480, "width": 640}, result)

    Every file appears whole or not at all; after an error there is no JSON file. Errors: UserError where a file cannot
    be written; ValueError for ids that no colour has.
    """

    def __init__(self, path: str | Path, folder: str | Path | None = None, categories: Sequence[Item] = ()) -> None:
        self.path = Path(path)
        self.folder = Path(folder) if folder is not None else self.path.with_suffix("")
        self.data: dict[str, list[Item]] = {"images": [], "annotations": [], "categories": list(categories)}

    def __enter__(self) -> "PanopticWriter":
        return self

    def add(self, image: Item, result: Panoptic) -> None:
        """Write one image's segments. image: its entry of a COCO file; the PNG has its name."""
        ids = result["panoptic"].cpu().numpy()
        if ids.size and not 0 <= ids.min() <= ids.max() < 2**24:
            raise ValueError(f"segment ids are 0 to 16777215, not {ids.min()} to {ids.max()}")
        name = str(Path(image["file_name"]).with_suffix(".png"))
        with whole_file(self.folder / name) as temporary:
            Image.fromarray(id_colors(ids)).save(temporary, format="png", compress_level=1)
        self.data["images"].append(image)
        segments = result["segments_info"]
        self.data["annotations"].append({"image_id": image["id"], "file_name": name, "segments_info": segments})

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is None:
            with whole_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.data))


class PanopticDataset(CocoDataset):
    """A CocoDataset of all segments of a panoptic file, things first: labels 1..K, stuff K + 1..K + S.

    So an instance model learns from masks that do not overlap, as CondInst's section 3.9 asks; `split_target` parts
    things from stuff. segment_folder: of the PNGs, by default the file's name without .json; keep_empty=False leaves
    out images without a thing that is no crowd; category_ids: the list that a checkpoint was trained with, by default
    things, then stuff, ascending; cache, skip_missing, attributes: as in CocoDataset, and `files`, `num_things` (K).
    Errors: UserError, one sentence, for whatever is wrong with the files.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        segment_folder: str | Path | None = None,
        *,
        keep_empty: bool = True,
        cache: bool = False,
        skip_missing: bool = False,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        self.image_folder, self.annotation_file = str(image_folder), str(annotation_file)
        self.outlines, self.dropped = False, 0
        if not Path(image_folder).is_dir():
            raise UserError(f"image folder {image_folder} does not exist or is no folder.")
        self.files = PanopticFiles(annotation_file, segment_folder, truth=True)
        kinds = sorted(self.files.isthing, key=lambda i: (not self.files.isthing[i], i))
        self.category_ids = list(category_ids) if category_ids is not None else kinds
        self.num_things = sum(self.files.isthing.values())
        if self.category_ids != kinds:
            raise UserError(f"{annotation_file} does not have the categories that the model knows, things first.")
        names = {c["id"]: str(c.get("name", f"category {c['id']}")) for c in self.files.categories}
        self.class_names = [names[i] for i in self.category_ids]
        if not self.files.rows.keys() <= self.files.images.keys():
            raise UserError(f"{annotation_file} has segments of images that it does not list.")
        images = with_file([self.files.images[i] for i in self.files.image_ids], self.image_folder, skip_missing)
        images = [image for image in images if keep_empty or self._has_thing(image["id"])]
        if not images:
            raise UserError(f"{annotation_file} lists no image{'' if keep_empty else ' with a thing to learn from'}.")
        self.image_ids: list[int] = [image["id"] for image in images]
        self.file_names: list[str] = [image["file_name"] for image in images]
        self.sizes: list[Size] = [(image["height"], image["width"]) for image in images]
        self._cache: dict[int, Tensor] | None = {} if cache else None
        self._ids: dict[int, Tensor] = {}

    def _has_thing(self, image_id: int) -> bool:
        rows = self.files.rows[image_id]["segments_info"]
        return any(self.files.isthing[row["category_id"]] and not row.get("iscrowd") for row in rows)

    def target(self, index: int) -> dict[str, Any]:
        """The target alone: `boxes` (M, 4) float32 xyxy, tight around the segments, `labels` (M,) int64, `masks`
        (M, H, W) bool, disjoint, `iscrowd` (M,) bool, `image_id` int.

        Errors: UserError where a PNG is broken, of another size than annotated, or does not fit the JSON file.
        """
        image_id = self.image_ids[index]
        rows = self.files.rows[image_id]["segments_info"]
        ids = self._ids.get(index)
        if ids is None:
            ids = self.files[image_id]["panoptic"].int()
        if self._cache is not None:
            self._ids[index] = ids
        masks = ids == torch.tensor([row["id"] for row in rows], dtype=ids.dtype).reshape(-1, 1, 1)  # (M, H, W)
        if not masks.flatten(1).any(dim=1).all():
            raise UserError(f"{self.annotation_file}: a segment of image {image_id} has no pixel in its PNG.")
        labels = [self.category_ids.index(row["category_id"]) + 1 for row in rows]
        return {
            "boxes": boxes_around(masks),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": masks,
            "iscrowd": torch.tensor([bool(row.get("iscrowd")) for row in rows], dtype=torch.bool),
            "image_id": image_id,
        }


def boxes_around(masks: Tensor) -> Tensor:
    """Boxes (M, 4) float32 xyxy around masks (M, H, W), none of which is empty; pixel i covers i..i + 1."""
    sides = []
    for covered in (masks.any(dim=1), masks.any(dim=2)):  # along x (M, W), along y (M, H)
        flags = covered.byte()
        sides.append((flags.argmax(dim=1), flags.shape[1] - flags.flip(1).argmax(dim=1)))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], dim=1).float()
