"""COCO annotation files: read and checked, so that whatever is wrong becomes one sentence naming file and field.

The COCO format, as pycocotools reads it: boxes are x, y, width, height in pixels; a segmentation is a list of polygons
(x, y, x, y, ... in pixels, which may leave the image) or a run-length encoding (RLE) of the whole image, column by
column, its `counts` a list of numbers or their compressed text.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from condinst_edu.errors import UserError

Item = dict[str, Any]
Coco = dict[str, list[Item]]

LARGEST_IMAGE = 89_478_485  # pixels, a quarter of a gigabyte in RGB: Pillow's own limit


def read_json(path: str | Path) -> Any:
    """The contents of a JSON file; UserError where it is missing, unreadable or cut off (with line and column)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"annotation file {path} {'is no file' if path.exists() else 'does not exist'}.")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = "is cut off" if cut else f"is no valid JSON ({error.msg})"
        raise UserError(f"{path} {what} at line {error.lineno}, column {error.colno}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None


def read_coco(path: str | Path) -> Coco:
    """The images, categories and annotations of a COCO file, checked (`check_coco`)."""
    return check_coco(read_json(path), str(path))


def check_coco(data: Any, name: str) -> Coco:
    """The three lists of COCO data if fields, ids and references are right; UserError names the first that is not.

    Segmentations are checked when they are encoded. An annotation needs no id, area or iscrowd (0 then).
    """
    if not isinstance(data, dict):
        raise UserError(f"{name} is no COCO file: expected an object with images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if key not in data:
            raise UserError(f"{name} is no COCO file of annotated images: it has no '{key}'.")
        if not (isinstance(data[key], list) and all(isinstance(item, dict) for item in data[key])):
            raise UserError(f"{name}: '{key}' is not a list of objects.")
    for i, image in enumerate(data["images"]):
        check_image(image, f"{name}: images[{i}]")
    for i, category in enumerate(data["categories"]):
        check_integer(category, "id", f"{name}: categories[{i}]")
        check_text(category, "name", f"{name}: categories[{i}]")
    known = {key: unique_ids(data[key], f"{name}: {key}") for key in ("images", "categories")}
    for i, annotation in enumerate(data["annotations"]):
        _check_annotation(annotation, known, f"{name}: annotations[{i}]")
    unique_ids([a for a in data["annotations"] if "id" in a], f"{name}: annotations")
    return {key: data[key] for key in ("images", "annotations", "categories")}


def check_image(image: Item, where: str) -> None:
    check_integer(image, "id", where)
    check_text(image, "file_name", where)
    for side in ("height", "width"):
        check_integer(image, side, where)
        if image[side] < 1:
            raise UserError(f"{where}: '{side}' is {image[side]}, but an image has at least one pixel.")
    if image["height"] * image["width"] > LARGEST_IMAGE:
        raise UserError(
            f"{where} has {image['height'] * image['width']} pixels, more than the {LARGEST_IMAGE} that are read."
        )


def _check_annotation(annotation: Item, known: dict[str, set[int]], where: str) -> None:
    for field, key, noun in (("image_id", "images", "image"), ("category_id", "categories", "category")):
        check_integer(annotation, field, where)
        if annotation[field] not in known[key]:
            raise UserError(f"{where}: '{field}' is {annotation[field]}, but the file has no {noun} of that id.")
    if "id" in annotation:
        check_integer(annotation, "id", where)
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{where}: 'iscrowd' is 0 or 1, not {annotation['iscrowd']!r}.")
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and _all_finite(box) and box[2] >= 0 and box[3] >= 0):
        raise UserError(f"{where}: 'bbox' is four finite numbers x, y, width, height, not {_short(box)}.")
    if "area" in annotation and not (_all_finite([annotation["area"]]) and annotation["area"] >= 0):
        raise UserError(f"{where}: 'area' is a number of pixels, not {_short(annotation['area'])}.")
    if "segmentation" not in annotation:
        raise UserError(f"{where} has no 'segmentation': expected polygons or an RLE.")


def check_integer(item: Item, field: str, where: str) -> None:
    if field not in item:
        raise UserError(f"{where} has no '{field}'.")
    if type(item[field]) is not int:  # True is an int too
        raise UserError(f"{where}: '{field}' is an integer, not {_short(item[field])}.")


def check_text(item: Item, field: str, where: str) -> None:
    if not (isinstance(item.get(field), str) and item[field]):
        raise UserError(f"{where}: '{field}' is a text, not {_short(item.get(field))}.")


def unique_ids(items: list[Item], where: str) -> set[int]:
    ids: set[int] = set()
    for item in items:
        if item["id"] in ids:
            raise UserError(f"{where} has the id {item['id']} twice.")
        ids.add(item["id"])
    return ids


def _all_finite(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) < math.inf for value in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# Segmentations


def encode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> bytes:
    """Compressed RLE counts of a segmentation, as pycocotools has them; what lies outside the image is cut off.

    size: (height, width) of the image; `where` begins the sentence of an error. An empty list is an empty mask.
    """
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, size, where)
    if not isinstance(segmentation, list):
        raise UserError(f"{where}: 'segmentation' is a list of polygons or an RLE, not {_short(segmentation)}.")
    if not segmentation:
        return bytes(mask_utils.encode(np.zeros(size, np.uint8, order="F"))["counts"])
    polygons = [_check_polygon(polygon, size, where) for polygon in segmentation]
    return bytes(mask_utils.merge(mask_utils.frPyObjects(polygons, *size))["counts"])


def _check_polygon(polygon: Any, size: tuple[int, int], where: str) -> NDArray[np.float64]:
    if not isinstance(polygon, list):
        raise UserError(f"{where}: a polygon of 'segmentation' is a list x, y, x, y, ..., not {_short(polygon)}.")
    if len(polygon) % 2:
        raise UserError(f"{where}: a polygon of 'segmentation' has an odd number of coordinates ({len(polygon)}).")
    if len(polygon) < 6:
        raise UserError(f"{where}: a polygon of 'segmentation' has {len(polygon) // 2} points, but needs at least 3.")
    try:
        points = np.array(polygon)
    except ValueError:  # a list of lists of unequal length
        points = np.array(None)
    if points.ndim != 1 or points.dtype.kind not in "iuf" or not np.isfinite(points).all():
        raise UserError(f"{where}: a polygon of 'segmentation' has a coordinate that is no finite number.")
    # pycocotools walks along the outline pixel by pixel and would run out of memory on a stray 1e9.
    if np.abs(points).max() > 100 * max(size):
        raise UserError(
            f"{where}: a polygon of 'segmentation' reaches {points[np.abs(points).argmax()]:g}, "
            f"far outside the image of {size[1]} x {size[0]} pixels."
        )
    return points.astype(np.float64)


def _encode_rle(rle: Item, size: tuple[int, int], where: str) -> bytes:
    if rle.get("size") != list(size):
        raise UserError(
            f"{where}: the RLE has size {_short(rle.get('size'))}, but the image is {list(size)} (height, width)."
        )
    counts = rle.get("counts")
    runs = counts if isinstance(counts, list) else _uncompress(counts)
    if not _all_finite(runs) or any(run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise UserError(
            f"{where}: the 'counts' of the RLE are broken, they do not add up to {size[0]} x {size[1]} pixels."
        )
    if isinstance(counts, list):
        return bytes(mask_utils.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"])
    return counts.encode() if isinstance(counts, str) else bytes(counts)  # type: ignore[arg-type]


def _uncompress(counts: Any) -> list[int]:
    """Run lengths of compressed RLE counts; [-1] where it is none. pycocotools does not check, and reads past the end.

    Each number is a sequence of characters of 5 bits, lowest first, whose bit 6 says that more follow; from the fourth
    number on it is the difference to the number before the last.
    """
    code = counts.encode(errors="replace") if isinstance(counts, str) else counts if isinstance(counts, bytes) else b""
    digits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return [-1]
    ends = np.flatnonzero(digits & 32 == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if lengths.max() > 7:  # more than 32 bits
        return [-1]
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((digits & 31) << places, starts)
    values -= np.where(digits[ends - 1] & 16, 1 << (5 * lengths), 0)  # the highest bit is the sign
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    runs: list[int] = values.tolist()
    return runs
