"""COCO folders for tests: small ones written on the spot, with every oddity that such folders hold, and real ones."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("CONDINST_REAL", ROOT.parent / "shared" / "real"))


class Folder(NamedTuple):
    """Where the images are, the annotation file, and its contents."""

    images: Path
    annotations: Path
    data: dict[str, Any]

    def write(self) -> "Folder":
        """Write the contents again, after a test has changed them."""
        self.annotations.write_text(json.dumps(self.data))
        return self


def rle(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A compressed RLE of a mask (H, W), as COCO files have it."""
    code = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def runs(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An uncompressed RLE of a mask (H, W), counted pixel by pixel, column by column."""
    counts, value = [0], False
    for pixel in mask.T.flatten():
        if bool(pixel) != value:
            counts, value = [*counts, 0], not value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def block(size: tuple[int, int], y1: int, x1: int, y2: int, x2: int) -> np.ndarray[Any, Any]:
    """A mask with a filled rectangle; y2 and x2 are exclusive."""
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def annotation(number: int, image: int, category: int, box: list[float], segmentation: Any, crowd: int = 0) -> Any:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
        "segmentation": segmentation,
    }


def odd_folder(path: Path) -> Folder:
    """Five images: polygons (one leaves the image), both kinds of RLE, crowds alone, nothing at all, empty objects.

    Category ids are 90, 3, 17 in this order, ids of images and annotations have gaps and begin at 0.
    """
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sizes = {7: (40, 60), 0: (33, 47), 12: (20, 30), 5: (20, 30), 9: (24, 36)}
    images = []
    for number, (height, width) in sizes.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
    ring = block((33, 47), 5, 6, 25, 30) & ~block((33, 47), 10, 12, 18, 20)
    annotations = [
        annotation(0, 7, 90, [5, 6, 20, 14], [[5, 6, 25, 6, 25.5, 20, 5, 20]]),
        annotation(4, 7, 3, [40, 20, 20, 20], [[40.2, 20.7, 75, 25, 70, 55, 42, 60]]),  # leaves the image
        annotation(5, 7, 3, [1, 1, 30, 30], [[1, 1, 9, 1, 5, 9], [20, 20, 31, 20, 31, 31, 20, 31]]),  # two parts
        annotation(6, 0, 17, [6, 5, 24, 20], rle(ring)),
        annotation(9, 0, 17, [0, 20, 12, 13], runs(block((33, 47), 20, 0, 33, 12))),
        annotation(10, 0, 90, [30, 0, 17, 33], runs(block((33, 47), 0, 30, 33, 47)), crowd=1),
        annotation(11, 12, 3, [2, 2, 10, 10], rle(block((20, 30), 2, 2, 12, 12)), crowd=1),
        annotation(12, 9, 3, [4, 4, 0, 8], [[4, 4, 4, 12, 4.2, 12]]),  # a box without width
        annotation(13, 9, 3, [50, 4, 8, 8], [[50, 4, 58, 4, 58, 12, 50, 12]]),  # wholly outside
        annotation(14, 9, 3, [2, 2, 5, 5], []),
        annotation(15, 9, 3, [2, 3, 10, 12], [[2, 3, 12, 3, 12, 15, 2, 15]]),
    ]
    categories = [{"id": 90, "name": "kite"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return Folder(path, path.parent / f"{path.name}.json", data).write()


def random_folder(path: Path, images: int, size: tuple[int, int] = (48, 64), objects: int = 4) -> Folder:
    """Images of noise with rectangles and triangles of two categories, ids 1 and 2."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": 1, "name": "block"}, {"id": 2, "name": "wedge"}]
    for i in range(images):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path / f"{i}.png")
        data["images"].append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        for _ in range(objects):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 12, 12), (size[1] - 30, size[0] - 30, 30, 30)))
            category = int(rng.integers(1, 3))
            corners = [x, y, x + w, y, x + w, y + h] + ([x, y + h] if category == 1 else [])
            number = len(data["annotations"]) + 1
            data["annotations"].append(annotation(number, i, category, [x, y, w, h], [corners]))
    return Folder(path, path.parent / f"{path.name}.json", data).write()


def real_folder(name: str) -> Folder:
    """One of the small real sets, in the folder that CONDINST_REAL names; the test is skipped without it."""
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: set CONDINST_REAL to the folder of the small real sets")
    annotations = folder / "annotations" / "instances.json"
    return Folder(folder / "images", annotations, json.loads(annotations.read_text()))
