"""Shapes written as a COCO folder: images, instance and panoptic annotations, as COCO 2017 lays them out.

out/shapes.json                                    the settings, written last: with it the folder is complete
out/train/000001.png           out/val/...
out/annotations/instances_train.json               RLE masks: polygons would lose holes and half pixels
out/annotations/panoptic_train.json
out/panoptic_train/000001.png                      segment id = R + 256 G + 65536 B, 0 is void
"""

import contextlib
import dataclasses
import json
import multiprocessing
import shutil
import signal
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from condinst_edu.datasets.shapes import GENERATOR, ShapesConfig, ShapesSample, categories, generate
from condinst_edu.errors import UserError
from condinst_edu.files import cannot_write
from condinst_edu.progress import progress_bar

Item = dict[str, Any]

VAL_START = 10_000_000  # held-out images are numbers of the same series that no training set reaches


def write_shapes(
    out: Path,
    train: int = 4000,
    val: int = 200,
    seed: int = 0,
    config: ShapesConfig | None = None,
    jobs: int = 1,
    show_progress: bool = True,
) -> None:
    """Write `train` + `val` images of the series `seed` and their annotations to the folder `out`.

    A folder that holds the same images already is left as it is. All is written beside it first and renamed, so that
    `out` is complete or not there. jobs: processes; they do not change the result.
    Errors: UserError where `out` holds anything else or cannot be written, and where the numbers make no sense.
    """
    config, out = config or ShapesConfig(), out.resolve()
    if not 0 < train <= VAL_START or val < 1:
        raise UserError(f"at least one image to learn from and one to hold out are needed, not {train} and {val}.")
    settings = {"generator": GENERATOR, "seed": seed, "train": train, "val": val, **dataclasses.asdict(config)}
    settings = json.loads(json.dumps(settings))
    if _is_written(out, settings):
        return
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    try:
        for split, first, count in (("train", 0, train), ("val", VAL_START, val)):
            _write_split(temporary, split, range(first, first + count), seed, config, jobs, show_progress)
        (temporary / "shapes.json").write_text(json.dumps(settings, indent=2))
        if out.exists():
            out.rmdir()  # _is_written has seen that it is empty
        temporary.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_written(out: Path, settings: Item) -> bool:
    """Whether `out` holds these very images; UserError where it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "shapes.json").read_text())
        found = dict(found)
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{out} holds something else than shapes: name a folder that is new or empty.") from None
    if found != settings:
        changed = next(name for name in settings if found.get(name) != settings[name])
        raise UserError(
            f"{out} holds other shapes ({changed} is {found.get(changed)}, not {settings[changed]}): remove it or name "
            "another folder."
        )
    return True


def _write_split(
    folder: Path, split: str, indices: range, seed: int, config: ShapesConfig, jobs: int, show_progress: bool
) -> None:
    images_folder, panoptic_folder = folder / split, folder / f"panoptic_{split}"
    for path in (images_folder, panoptic_folder, folder / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    draw = partial(_write_one, images_folder, panoptic_folder, seed, config, indices.start)
    images: list[Item] = []
    annotations: list[Item] = []
    panoptic: list[Item] = []
    with progress_bar(show_progress) as progress:
        task = progress.add_task(f"drawing {split}", total=len(indices), note="")
        with contextlib.closing(_map(draw, indices, jobs)) as written:  # no process outlives a failure or Ctrl-C
            for image, objects, segments in written:
                images.append(image)
                annotations += [{"id": len(annotations) + k, **item} for k, item in enumerate(objects, start=1)]
                panoptic.append(segments)
                progress.advance(task)
    info = {"description": f"condinst_edu shapes, series {seed}, {split}", "version": str(GENERATOR)}
    common = {"info": info, "licenses": [{"id": 1, "name": "MIT", "url": ""}], "images": images}
    things = [{k: c[k] for k in ("id", "name", "supercategory")} for c in categories() if c["isthing"]]
    instances = {**common, "annotations": annotations, "categories": things}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(instances))
    stuff_too = {**common, "annotations": panoptic, "categories": categories()}
    (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(stuff_too))


def _map(function: Any, indices: range, jobs: int) -> Generator[tuple[Item, list[Item], Item], None, None]:
    if jobs < 2 or len(indices) < 50:
        yield from map(function, indices)
        return
    # A fresh interpreter per process: forking one in which torch has started threads can hang.
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to handle, once
    with multiprocessing.get_context("spawn").Pool(jobs, signal.signal, ignore) as pool:
        yield from pool.imap(function, indices, chunksize=25)


def _write_one(
    images_folder: Path, panoptic_folder: Path, seed: int, config: ShapesConfig, start: int, index: int
) -> tuple[Item, list[Item], Item]:
    """Draw and write one image; its entries in the three lists."""
    sample = generate(index, seed, config)
    image_id = index - start + 1
    name = f"{image_id:06}.png"
    Image.fromarray(sample.image).save(images_folder / name)
    Image.fromarray(id_colors(sample.panoptic)).save(panoptic_folder / name)
    height, width = config.size
    image = {"id": image_id, "file_name": name, "height": height, "width": width, "license": 1}
    segments = {"image_id": image_id, "file_name": name, "segments_info": sample.segments_info}
    return image, list(_objects(sample, image_id)), segments


def _objects(sample: ShapesSample, image_id: int) -> Iterator[Item]:
    rles = mask_utils.encode(np.asfortranarray(sample.masks.transpose(1, 2, 0).view(np.uint8)))
    for rle, segment in zip(rles, sample.segments_info, strict=False):  # things come first among the segments
        yield {
            "image_id": image_id,
            "category_id": segment["category_id"],
            "bbox": segment["bbox"],
            "area": segment["area"],
            "iscrowd": 0,
            "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
        }


def id_colors(panoptic: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Segment ids (H, W) as the colours (H, W, 3) of COCO's panoptic PNGs."""
    return np.stack([panoptic % 256, panoptic // 256 % 256, panoptic // 65536], axis=2).astype(np.uint8)
