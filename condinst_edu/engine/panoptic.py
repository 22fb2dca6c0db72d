"""Panoptic quality of a model on a set of images, and its panoptic results as files and as pictures."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Subset

from condinst_edu.adaptis import AdaptIS
from condinst_edu.datasets.batching import build_eval_loader, eval_image
from condinst_edu.datasets.coco import read_image
from condinst_edu.datasets.coco_panoptic import PanopticDataset, PanopticWriter
from condinst_edu.engine.checkpoint import Trained
from condinst_edu.engine.distributed import gather_to_first, of_first, rank, world
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.panoptic import Counts, Panoptic, Scores, match_segments, mean_quality
from condinst_edu.panoptic_models import PANOPTIC_MODELS
from condinst_edu.progress import progress_bar


@torch.inference_mode()
def evaluate_panoptic(
    model: nn.Module,
    dataset: PanopticDataset,
    short_side: int | None = None,
    max_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    workers: int = 0,
) -> Scores:
    """Panoptic quality of a model on the images of a set: `mean_quality` with the classes' names; see `evaluate`.

    Of several processes, each takes every world()-th image; their counts are added up.
    """
    training = model.training
    model.to(device).eval()
    counts: list[dict[int, Counts]] = []
    share: Any = dataset if world() == 1 else Subset(dataset, range(rank(), len(dataset), world()))
    with progress_bar(progress and rank() == 0) as bar:
        task = bar.add_task("evaluating", total=len(share), note="")
        for image, image_id, size in build_eval_loader(share, short_side, max_size, workers):
            result = model([image.to(device)], output_sizes=[size])[0]
            found = named(result, dataset.category_ids)
            counts.append(match_segments(dataset.files[image_id], found, dataset.files.isthing))
            bar.advance(task)
    model.train(training)
    every = [image for part in gather_to_first(counts) for image in part]
    scores = mean_quality(every, dataset.files.isthing)
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    scores["per_class"] = {names[category]: row for category, row in scores["per_class"].items()}
    return of_first(scores)


def named(result: Panoptic, category_ids: Sequence[int]) -> Panoptic:
    """A model's panoptic result with category ids in place of labels, on the CPU."""
    rows = [{**s, "category_id": category_ids[s["category_id"] - 1]} for s in result["segments_info"]]
    return {"panoptic": result["panoptic"].cpu(), "segments_info": rows}


def quality_table(scores: Scores) -> Table:
    """The scores for the terminal, in percent; of each category too where there are few."""
    table = Table("in percent", "PQ", "SQ", "RQ", "classes")
    for group in ("All", "Things", "Stuff"):
        n = scores[group]["n"]
        cells = [f"{100 * scores[group][key]:.1f}" if n else "-" for key in ("pq", "sq", "rq")]
        table.add_row(group, *cells, str(n))
    if len(scores["per_class"]) <= 20:
        table.add_section()
        for name, row in scores["per_class"].items():
            cells = [f"{100 * row[key]:.1f}" for key in ("pq", "sq", "rq")]
            table.add_row(name, *cells, "")
    return table


# Photographs


@torch.inference_mode()
def predict_panoptic(trained: Trained, images: Sequence[Path], names: Sequence[str], out: Path, device: str) -> Path:
    """Segment photographs into things and stuff; a picture of each, panoptic.json and panoptic/*.png in `out`.

    names: of the pictures; image ids count the photographs from 1. Returns the path of the JSON file.
    Errors: UserError for a model without stuff, an unreadable photograph or a folder that cannot be written.
    """
    model, recipe = trained.model.to(device), trained.recipe
    num_things = require_panoptic(model)
    writable_folder(out)
    class_of = dict(zip(trained.category_ids, trained.class_names, strict=True))
    categories = [
        {"id": i, "name": name, "isthing": int(k < num_things)} for k, (i, name) in enumerate(class_of.items())
    ]
    with PanopticWriter(out / "panoptic.json", categories=categories) as writer, progress_bar() as progress:
        task = progress.add_task("predicting", total=len(images), note="")
        for number, (path, name) in enumerate(zip(images, names, strict=True), start=1):
            image = read_image(path, upright=True)
            size = (image.shape[1], image.shape[2])
            resized = eval_image(image, recipe["test_short_side"], recipe["test_max_size"] or recipe["max_size"])
            found = named(model([resized.to(device)], output_sizes=[size])[0], trained.category_ids)
            writer.add({"id": number, "file_name": name, "height": size[0], "width": size[1]}, found)
            picture = draw_panoptic(image, found, class_of)
            with whole_file(out / name) as temporary:
                picture.save(temporary, format="png")
            progress.update(task, completed=number, note=path.name)
    return writer.path


def is_panoptic(model: nn.Module) -> TypeGuard[PANOPTIC_MODELS | AdaptIS]:
    """Whether a model's results have "panoptic" and "segments_info"."""
    return isinstance(model, PANOPTIC_MODELS) or (isinstance(model, AdaptIS) and model.whole)


def require_panoptic(model: nn.Module) -> int:
    """The number of classes of things of a panoptic model; UserError for another one."""
    if is_panoptic(model):
        return model.num_things
    raise UserError("this model finds instances alone: --panoptic needs one that was trained on panoptic data")


def draw_panoptic(image: Tensor, result: Panoptic, names: Mapping[int, str]) -> Image.Image:
    """The photograph (3, H, W) uint8 under the colours of its segments, their names and scores in the middle of each.

    names: of the categories. Stuff is pale; things are strong, and each has a colour of its own; void stays grey.
    """
    ids = result["panoptic"].numpy()
    paint = np.full((*ids.shape, 3), 128, np.uint8)
    for k, segment in enumerate(result["segments_info"]):
        thing = segment.get("isthing", 1)
        hue = (0.618 * k) % 1 if thing else (0.37 * segment["category_id"]) % 1
        rgb = colorsys.hsv_to_rgb(hue, 0.9 if thing else 0.35, 1.0 if thing else 0.8)
        paint[ids == segment["id"]] = [round(255 * c) for c in rgb]
    picture = Image.blend(Image.fromarray(image.permute(1, 2, 0).numpy()), Image.fromarray(paint), 0.55)
    pen = ImageDraw.Draw(picture)
    for segment in result["segments_info"]:
        y, x = np.nonzero(ids == segment["id"])
        middle = np.hypot(y - np.median(y), x - np.median(x)).argmin()  # a pixel of its own
        score = f" {segment['score']:.2f}" if segment.get("score") is not None else ""
        text = f"{names.get(segment['category_id'], segment['category_id'])}{score}"
        pen.text((x[middle], y[middle]), text, fill="white", stroke_width=1, stroke_fill="black", anchor="mm")
    return picture
