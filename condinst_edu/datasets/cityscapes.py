"""Cityscapes' fine annotations as COCO files, which the one reader then reads; and as maps of 19 classes.

    condinst-edu data cityscapes --root data/cityscapes

`gtFine/SPLIT/CITY/*_instanceIds.png` holds one number per pixel: class * 1000 + k for the k-th object of one of eight
classes, and the class alone for what is not told apart: stuff, or a group of objects, which becomes a crowd region.
`*_labelIds.png` holds the class alone. AP on these files is COCO's; Cityscapes' own differs in its matching. The
same numbers make the panoptic files, of 19 classes; a group of objects is a crowd there too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from condinst_edu.datasets.coco_json import LARGEST_IMAGE
from condinst_edu.datasets.coco_panoptic import PanopticWriter, segments_of
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.progress import progress_bar

THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
STUFF = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
}
CLASSES = STUFF | THINGS  # in the order of Cityscapes' training ids, 0 to 18
IGNORED = 255
SPLITS = ("train", "val")


def read_semantic(path: str | Path) -> Tensor:
    """A `_labelIds.png` as classes (H, W) uint8, 0 to 18 in the order of `CLASSES`, 255 for what is not scored."""
    table = np.full(256, IGNORED, np.uint8)
    table[list(CLASSES)] = np.arange(len(CLASSES))
    ids = read_numbers(Path(path))
    if ids.max(initial=0) > 255:
        raise UserError(f"{path} has numbers above 255: expected the file that ends in _labelIds.png")
    return torch.from_numpy(table[ids])


def write_annotations(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Write annotations of each split that is there; yields (file, images, "N objects" or "N segments").

    root/annotations/instances_SPLIT.json has the objects of eight classes, panoptic_SPLIT.json and the PNGs in
    panoptic_SPLIT/ all 19 classes. Images are named relative to root/leftImg8bit/SPLIT; of the first, each also has
    `semantic_file`, relative to root/gtFine/SPLIT.
    Errors: UserError where nothing is there, or an annotation cannot be read.
    """
    found = {split: sorted((root / "gtFine" / split).glob("*/*_gtFine_instanceIds.png")) for split in SPLITS}
    if not any(found.values()):
        raise UserError(f"{root} has no gtFine/train/CITY/*_gtFine_instanceIds.png: expected gtFine as it is unpacked")
    for split, paths in found.items():
        if not paths:
            continue
        data: dict[str, Any] = {"images": [], "annotations": []}
        data["categories"] = [{"id": number, "name": name} for number, name in THINGS.items()]
        kinds = [{"id": number, "name": name, "isthing": int(number in THINGS)} for number, name in CLASSES.items()]
        segments_file = root / "annotations" / f"panoptic_{split}.json"
        with PanopticWriter(segments_file, categories=kinds) as writer, progress_bar() as progress:
            for path in progress.track(paths, task_id=progress.add_task(split, total=len(paths), note="")):
                add_image(data, path, writer)
        out = root / "annotations" / f"instances_{split}.json"
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(data))
        yield out, len(paths), f"{len(data['annotations'])} objects"
        segments = sum(len(row["segments_info"]) for row in writer.data["annotations"])
        yield segments_file, len(paths), f"{segments} segments"


def add_image(data: dict[str, Any], path: Path, writer: PanopticWriter) -> None:
    """Add one image and the objects of its `_instanceIds.png` to COCO data, and its segments to the panoptic files."""
    ids = read_numbers(path)
    image_id = len(data["images"]) + 1
    stem = f"{path.parent.name}/{path.name.removesuffix('_gtFine_instanceIds.png')}"
    image: dict[str, Any] = {"id": image_id, "file_name": f"{stem}_leftImg8bit.png"}
    image |= {"height": ids.shape[0], "width": ids.shape[1]}
    writer.add(image, segments_of(ids, class_of))
    data["images"].append(image | {"semantic_file": f"{stem}_gtFine_labelIds.png"})
    for number in np.unique(ids).tolist():
        category, crowd = class_of(number) or (0, False)
        if category not in THINGS:
            continue
        rle = mask_utils.encode(np.asfortranarray(ids == number).view(np.uint8))
        annotation: dict[str, Any] = {"id": len(data["annotations"]) + 1, "image_id": image_id}
        annotation |= {"category_id": category, "iscrowd": int(crowd)}
        annotation |= {"area": int(mask_utils.area(rle)), "bbox": mask_utils.toBbox(rle).tolist()}
        annotation["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        data["annotations"].append(annotation)


def class_of(number: int) -> tuple[int, bool] | None:
    """Class of a number of `_instanceIds.png`, and whether it is a group of objects; None if it is not scored."""
    category = number if number < 1000 else number // 1000
    return (category, number in THINGS) if category in CLASSES else None


def read_numbers(path: Path) -> NDArray[np.int64]:
    """The numbers (H, W) of an 8 or 16 bit PNG."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > LARGEST_IMAGE:
                raise UserError(
                    f"{path} has {file.width * file.height} pixels, more than the {LARGEST_IMAGE} that are read."
                )
            ids = np.asarray(file)
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None
    if ids.ndim != 2:
        raise UserError(f"{path} is no map of numbers: expected one channel, found shape {ids.shape}")
    return ids.astype(np.int64)
