"""Any COCO-format folder as a torch data set: COCO itself, the written shapes, a folder of your own.

Labels are contiguous: label k in 1..K stands for `category_ids[k - 1]`, in ascending order of the ids unless a
checkpoint says otherwise. All objects lie in a few flat arrays, not in a million small Python objects: loader processes
then share that memory, and an image's masks are decoded in one call.

Legend: N objects of an image, M of all images, H, W image.
"""

import copy
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.utils.data import Dataset

from condinst_edu.datasets.coco_json import LARGEST_IMAGE, Coco, Item, encode_segmentation, read_coco
from condinst_edu.datasets.outlines import Segmentation, decode_masks
from condinst_edu.errors import UserError

Sample = tuple[Tensor, dict[str, Any]]

logger = logging.getLogger(__name__)


class CocoDataset(Dataset[Sample]):
    """Images of a folder with the boxes, labels and masks of a COCO annotation file.

    keep_empty=False leaves out images without an object that is no crowd, as the official code does in training;
    cache=True keeps decoded images in memory (each loader process its own); skip_missing=True leaves out images whose
    file is missing; category_ids: the list that a checkpoint was trained with, by default that of the file, ascending;
    outlines=True hands out polygons instead of masks, which `TrainTransform` draws at the size that is needed.

    Attributes: `category_ids`, `class_names` (K); `image_ids`, `file_names`, `sizes` (height, width) one per image;
    `annotation_file`; `dropped`: how many annotations have an empty box or mask and were left out.
    Errors: UserError, one sentence, for whatever is wrong with the files.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        *,
        keep_empty: bool = True,
        cache: bool = False,
        skip_missing: bool = False,
        category_ids: Sequence[int] | None = None,
        outlines: bool = False,
    ) -> None:
        self.outlines = outlines
        self.image_folder, self.annotation_file = str(image_folder), str(annotation_file)
        if not Path(image_folder).is_dir():
            raise UserError(f"image folder {image_folder} does not exist or is no folder.")
        coco = read_coco(annotation_file)
        self.category_ids, self.class_names = _classes(coco, category_ids, self.annotation_file)
        images = with_file(coco["images"], self.image_folder, skip_missing)
        objects = _objects_by_image(coco, images, self.annotation_file, outlines)
        self.dropped = sum(a is None for group in objects for a in group)
        if self.dropped:
            logger.warning("%s: left out %d annotations with an empty box or mask", annotation_file, self.dropped)
        kept = [[a for a in group if a is not None] for group in objects]
        if not keep_empty:
            useful = [any(not a["iscrowd"] for a in group) for group in kept]
            images = [image for image, keep in zip(images, useful, strict=True) if keep]
            kept = [group for group, keep in zip(kept, useful, strict=True) if keep]
        if not images:
            raise UserError(f"{annotation_file} lists no image{'' if keep_empty else ' with an object to learn from'}.")
        self.image_ids: list[int] = [image["id"] for image in images]
        self.file_names: list[str] = [image["file_name"] for image in images]
        self.sizes: list[tuple[int, int]] = [(image["height"], image["width"]) for image in images]
        self._objects = _pack(kept, {category: k for k, category in enumerate(self.category_ids, start=1)})
        self._cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Image (3, H, W) uint8 RGB as stored (no EXIF rotation: annotations refer to stored pixels), and its target.

        Target: `boxes` (N, 4) float32 xyxy in pixels, `labels` (N,) int64 from 1, `masks` (N, H, W) bool, `iscrowd`
        (N,) bool, `image_id` int; with outlines=True a list `segmentations` in place of `masks`. Errors: UserError
        where the file is broken or of another size than annotated.
        """
        index = range(len(self))[index]  # an IndexError past the end, and -1 is the last
        return self.image(index), self.target(index)

    def first(self, count: int) -> "CocoDataset":
        """The same set, of which only the first `count` images are left."""
        few = copy.copy(self)
        few.image_ids, few.file_names, few.sizes = self.image_ids[:count], self.file_names[:count], self.sizes[:count]
        return few

    def truth(self) -> str | Coco:
        """The annotations to score results against: their file, or their contents."""
        return self.annotation_file

    def image(self, index: int) -> Tensor:
        """The image alone, (3, H, W) uint8; the caller's own copy."""
        if self._cache is not None and index in self._cache:
            return self._cache[index].clone()
        image = read_image(Path(self.image_folder, self.file_names[index]), self.sizes[index])
        if self._cache is not None:
            self._cache[index] = image.clone()
        return image

    def target(self, index: int) -> dict[str, Any]:
        """The target alone, for which the image is not read."""
        o = self._objects
        start, end = o.first[index], o.first[index + 1]
        target: dict[str, Any] = {"boxes": o.boxes[start:end].clone(), "labels": o.labels[start:end].clone()}
        if self.outlines:
            target["segmentations"] = [o.segmentation(m) for m in range(start, end)]
        else:
            counts = [o.counts[a:b] for a, b in pairwise(o.offsets[start : end + 1])]
            target["masks"] = decode_masks(counts, self.sizes[index])
        target["iscrowd"] = o.iscrowd[start:end].clone()
        target["image_id"] = self.image_ids[index]
        return target


def read_image(path: str | Path, size: tuple[int, int] | None = None, upright: bool = False) -> Tensor:
    """An image file as (3, H, W) uint8 RGB; grey, palette and 16-bit files are converted, alpha is dropped.

    size: the (height, width) it must have, if known; upright: turned as the camera was held, not as stored.
    Errors: UserError where it is missing, broken, far too large or of another size.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size  # from the header alone
            if size is not None and (height, width) != size:
                raise UserError(
                    f"{path} is {width} x {height} pixels, but its annotation file says {size[1]} x {size[0]}."
                )
            if width * height > LARGEST_IMAGE:
                raise UserError(f"{path} has {width * height} pixels, more than the {LARGEST_IMAGE} that are read.")
            pixels = np.array(_to_rgb(ImageOps.exif_transpose(file) if upright else file))  # (H, W, 3)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such image: {path}") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"{path} cannot be read as an image: {str(error).rstrip('.') or type(error).__name__}."
        ) from None
    # Pixel after pixel in memory, as the file has them: resizing is then several times quicker.
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to the lowest 255 of 65 536 values
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


# From the file's lists to flat arrays


class _Objects(NamedTuple):
    """All objects of a set, image after image: those of image i are first[i]..first[i + 1].

    boxes (M, 4), labels (M,), iscrowd (M,); the RLE of object m is counts[offsets[m]:offsets[m + 1]], nothing where its
    polygons are kept instead: polygons[m]..polygons[m + 1], of which the p-th is points[corners[p]:corners[p + 1]].
    """

    first: list[int]
    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    counts: bytes
    offsets: NDArray[np.int64]
    points: NDArray[np.float64]
    corners: NDArray[np.int64]
    polygons: NDArray[np.int64]

    def segmentation(self, m: int) -> Segmentation:
        """The polygons of object m, or its RLE."""
        first, last = self.polygons[m : m + 2]
        if first == last:
            return self.counts[self.offsets[m] : self.offsets[m + 1]]
        return [self.points[a:b] for a, b in pairwise(self.corners[first : last + 1])]


def _classes(coco: Coco, category_ids: Sequence[int] | None, name: str) -> tuple[list[int], list[str]]:
    names = {category["id"]: category["name"] for category in coco["categories"]}
    if not names:
        raise UserError(f"{name}: 'categories' is empty.")
    ids = sorted(names) if category_ids is None else list(category_ids)
    for strange in {annotation["category_id"] for annotation in coco["annotations"]} - set(ids):
        raise UserError(
            f"{name} has annotations of category {strange} ({names[strange]}), which is none of the {len(ids)} "
            f"categories that the model knows."
        )
    return ids, [names.get(i, f"category {i}") for i in ids]


def with_file(images: list[Item], folder: str, skip_missing: bool) -> list[Item]:
    present = set(os.listdir(folder))  # one look at the folder is quicker than one per image
    missing = {
        image["id"]
        for image in images
        if image["file_name"] not in present and not os.path.isfile(os.path.join(folder, image["file_name"]))
    }
    if not missing:
        return images
    first = next(image["file_name"] for image in images if image["id"] in missing)
    text = f"{len(missing)} of {len(images)} images are missing in {folder}, first: {first}"
    if not skip_missing:
        raise UserError(f"{text} (skip_missing leaves them out)")
    logger.warning("%s", text)
    return [image for image in images if image["id"] not in missing]


def _objects_by_image(coco: Coco, images: list[Item], name: str, outlines: bool) -> list[list[Item | None]]:
    """Box, category, crowd flag and encoded mask of every annotation, per image; None for an empty box or mask.

    With outlines, polygons stay as they are.
    """
    groups: dict[int, list[Item | None]] = {image["id"]: [] for image in images}
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    for i, annotation in enumerate(coco["annotations"]):
        if annotation["image_id"] not in sizes:
            continue
        size = sizes[annotation["image_id"]]
        counts = encode_segmentation(annotation["segmentation"], size, f"{name}: annotations[{i}]")
        x, y, width, height = annotation["bbox"]
        empty = width == 0 or height == 0 or mask_utils.area({"size": size, "counts": counts}) == 0
        item: Item = {"box": (x, y, x + width, y + height), "category": annotation["category_id"], "counts": counts}
        item["iscrowd"] = bool(annotation.get("iscrowd", 0))
        item["polygons"] = []
        if outlines and isinstance(annotation["segmentation"], list):
            item["polygons"], item["counts"] = annotation["segmentation"], b""
        groups[annotation["image_id"]].append(None if empty else item)
    return list(groups.values())


def _pack(groups: list[list[Item]], label_of: dict[int, int]) -> _Objects:
    objects = [item for group in groups for item in group]
    polygons = [np.array(polygon, np.float64) for item in objects for polygon in item["polygons"]]
    return _Objects(
        first=np.cumsum([0, *(len(group) for group in groups)]).tolist(),
        boxes=torch.tensor([item["box"] for item in objects], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([label_of[item["category"]] for item in objects], dtype=torch.int64),
        iscrowd=torch.tensor([item["iscrowd"] for item in objects], dtype=torch.bool),
        counts=b"".join(item["counts"] for item in objects),
        offsets=np.cumsum([0, *(len(item["counts"]) for item in objects)], dtype=np.int64),
        points=np.concatenate([np.empty(0), *polygons]),
        corners=np.cumsum([0, *(len(polygon) for polygon in polygons)], dtype=np.int64),
        polygons=np.cumsum([0, *(len(item["polygons"]) for item in objects)], dtype=np.int64),
    )
