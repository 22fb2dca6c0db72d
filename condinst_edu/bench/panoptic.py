"""`condinst-edu bench panoptic`: panoptic quality of COCO files, read from the disk.

The files are drawn: images of 640x480 cut into a dozen ragged regions of COCO's 133 categories, and the same regions
moved by a few pixels as the prediction. It takes time in proportion to the images: the time for val2017's 5 000 is
stated as that many times the measured one.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from condinst_edu.bench import Bench, Group, race
from condinst_edu.datasets.coco_panoptic import PanopticWriter
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size
from condinst_edu.panoptic import Panoptic, evaluate_coco_panoptic

THINGS, STUFF = 80, 53
COCO_IMAGES = 5_000
RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_panoptic(runs, progress, images=options.images)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    return f"At this rate, COCO's 5000 images take {groups[0]['score'].facts['seconds_for_5000']:.0f} seconds."


def bench_panoptic(
    runs: int, progress: Progress, images: int = 200, regions: int = 12, size: Size = (480, 640)
) -> list[Group]:
    """Time to score that many images. Errors: UserError where there is none."""
    if images < 1:
        raise UserError(f"--images is at least 1, not {images}")
    with tempfile.TemporaryDirectory() as name:
        truth, found = Path(name, "truth.json"), Path(name, "found.json")
        write_files(truth, found, images, regions, size)
        variants = race("panoptic", {"score": lambda: evaluate_coco_panoptic(truth, found)}, runs, progress)
    variants[0].speedup = None  # nothing to compare with
    variants[0].facts = {"seconds_for_5000": (variants[0].median_ms or 0) / 1000 * COCO_IMAGES / images}
    variants[0].goal = {"seconds_for_5000": 180}
    return [Group("panoptic", f"{images} images of {size[1]}x{size[0]}, {regions} segments each", variants)]


def write_files(truth: Path, found: Path, images: int, regions: int, size: Size) -> None:
    """Panoptic files of a ground truth and of a prediction that misses it by a few pixels."""
    rng = np.random.default_rng(0)
    kinds = [{"id": i, "name": f"{i}", "isthing": int(i <= THINGS)} for i in range(1, THINGS + STUFF + 1)]
    with PanopticWriter(truth, categories=kinds) as true_files, PanopticWriter(found) as found_files:
        for i in range(images):
            entry = {"id": i + 1, "file_name": f"{i + 1:012}.png", "height": size[0], "width": size[1]}
            ids = draw_regions(rng, regions, size)
            colors = torch.from_numpy(1 + 255 * rng.choice(2**16, regions, replace=False))
            categories = rng.integers(1, THINGS + STUFF + 1, regions).tolist()
            true_files.add(entry, described(ids, colors, categories))
            found_files.add(entry, described(ids.roll((3, -4), (0, 1)), colors.flip(0), categories))


def draw_regions(rng: np.random.Generator, regions: int, size: Size) -> Tensor:
    """A map (H, W) int64 of numbers 0..regions - 1: the nearest of so many points, with ragged borders."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x, y = x + 6 * np.sin(y / 5) * np.cos(x / 11), y + 6 * np.cos(x / 7)
    points = rng.uniform((0, 0), size, (regions, 2)).astype(np.float32)
    return torch.from_numpy(((y - points[:, 0, None, None]) ** 2 + (x - points[:, 1, None, None]) ** 2).argmin(0))


def described(regions: Tensor, colors: Tensor, categories: list[int]) -> Panoptic:
    """A panoptic result whose region k has the id colors[k] and the category categories[k]."""
    areas = regions.flatten().bincount(minlength=len(colors)).tolist()
    rows = [
        {"id": i, "category_id": category, "area": area}
        for i, category, area in zip(colors.tolist(), categories, areas, strict=True)
        if area
    ]
    return {"panoptic": colors[regions], "segments_info": rows}
