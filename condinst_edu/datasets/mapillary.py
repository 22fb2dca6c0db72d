"""Mapillary Vistas 1.2: panoptic files from its maps of instances, where the download has none.

    condinst-edu data mapillary data/mapillary

`SPLIT/instances/NAME.png` holds one number per pixel: label * 256 + k for the k-th object of a class of things, and
label * 256 for stuff. `config.json` lists the labels: 66, of which 37 have instances, and one, unlabeled, is not
scored. `SPLIT/panoptic/panoptic_2018.json` and the PNGs beside it say the same as COCO's panoptic files do; these are
what is written here. Where the data lie in SPLIT/v1.2, beside version 2.0, the list is `config_v1.2.json`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from condinst_edu.datasets.cityscapes import read_numbers
from condinst_edu.datasets.coco_json import Item, read_json
from condinst_edu.datasets.coco_panoptic import PanopticWriter, segments_of
from condinst_edu.errors import UserError
from condinst_edu.progress import progress_bar

SPLITS = ("training", "validation")
PER_LABEL = 256


class Label(NamedTuple):
    """A row of config.json; evaluate: whether it is scored, instances: whether it is a class of things."""

    readable: str
    name: str
    instances: bool
    evaluate: bool


def write_panoptic(root: Path) -> Iterator[str]:
    """Write SPLIT/panoptic/ where it is missing; yields a line for each split that there is.

    Category ids are labels and 1, as in the download's own files. Errors: UserError where neither panoptic files nor
    instances with config.json are there, or one of them cannot be read.
    """
    splits = [path for split in SPLITS for path in (root / split, root / split / "v1.2") if has_annotations(path)]
    if not splits:
        raise UserError(f"{root} has no training/instances/*.png: expected Mapillary Vistas as it is unpacked")
    for split in splits:
        path = split / "panoptic" / "panoptic_2018.json"
        if path.is_file():
            yield f"{path} is there already"
            continue
        config = root / ("config_v1.2.json" if split.name == "v1.2" else "config.json")
        labels = read_labels(config)
        files = sorted((split / "instances").glob("*.png"))
        with PanopticWriter(path, path.parent, categories_of(labels)) as writer, progress_bar() as progress:
            task = progress.add_task(split.name, total=len(files), note="")
            for file in progress.track(files, task_id=task):
                add_image(writer, file, labels, config)
        segments = sum(len(row["segments_info"]) for row in writer.data["annotations"])
        yield f"{path}: {len(files)} images, {segments} segments"


def has_annotations(split: Path) -> bool:
    return (split / "panoptic" / "panoptic_2018.json").is_file() or any((split / "instances").glob("*.png"))


def read_labels(path: Path) -> list[Label]:
    """The labels of config.json, in its order, which their numbers follow."""
    data: Any = read_json(path)
    rows = data.get("labels") if isinstance(data, dict) else None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        raise UserError(f"{path} is no list of Mapillary's labels: it has no 'labels'")
    for i, row in enumerate(rows):
        for field in Label._fields:
            kind = str if field in ("readable", "name") else bool
            if not isinstance(row.get(field), kind):
                raise UserError(f"{path}: labels[{i}] has no {field!r} of type {kind.__name__}")
    return [Label(*(row[field] for field in Label._fields)) for row in rows]


def categories_of(labels: list[Label]) -> list[Item]:
    """The classes that are scored, as COCO's panoptic files have them."""
    return [
        {"id": number + 1, "name": label.readable, "supercategory": label.name, "isthing": int(label.instances)}
        for number, label in enumerate(labels)
        if label.evaluate
    ]


def add_image(writer: PanopticWriter, path: Path, labels: list[Label], config: Path) -> None:
    """Write the segments of one `instances/NAME.png`, whose image is NAME.jpg."""
    numbers: NDArray[np.int64] = read_numbers(path)
    if (highest := int(numbers.max(initial=0)) // PER_LABEL) >= len(labels):
        raise UserError(f"{path} has label {highest}, but {config} lists {len(labels)}, from 0 on")

    def category(number: int) -> tuple[int, bool] | None:
        label = number // PER_LABEL
        return (label + 1, False) if labels[label].evaluate else None

    height, width = numbers.shape
    number = len(writer.data["images"]) + 1
    image = {"id": number, "file_name": f"{path.stem}.jpg", "height": height, "width": width}
    writer.add(image, segments_of(numbers, category))
