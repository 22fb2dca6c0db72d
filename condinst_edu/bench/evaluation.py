"""`condinst-edu bench evaluation`: encoding 100 masks an image as RLE, and COCO box and mask AP of all of them.

The masks are drawn: ellipses with ragged edges, radii log-uniform from 6 to 150 pixels, in images of 640x480; seven of
each image's are the ground truth too. Encoding takes time in proportion to the images, scoring nearly so: the time for
COCO's 5 000 is stated as that many times the measured one.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from rich.progress import Progress
from torch import Tensor

from condinst_edu.bench import Bench, Group, Variant, race
from condinst_edu.engine.evaluate import Result, coco_ap, encode_results
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size

CLASSES = 80
COCO_IMAGES = 5_000
RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_evaluation(runs, progress, images=options.images)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    seconds = groups[0]["both"].facts["seconds_for_5000"]
    return f"At this rate, COCO's 5000 images with as many masks each take {seconds:.0f} seconds."


def bench_evaluation(
    runs: int, progress: Progress, images: int = 200, masks: int = 100, size: Size = (480, 640)
) -> list[Group]:
    """Time to encode, to score, and of both, for that many images. Errors: UserError where there is none."""
    if images < 1:
        raise UserError(f"--images is at least 1, not {images}")
    rng = np.random.default_rng(0)
    pool = [random_detections(rng, masks, size) for _ in range(min(4, images))]  # bitmaps of all would not fit
    results = encode_all(pool, images)
    truth = ground_truth(results, images, masks, size)
    timed = race(
        "evaluation",
        {"encode": lambda: encode_all(pool, images), "score": lambda: coco_ap(truth, results)},
        runs,
        progress,
    )
    both = Variant("both", [sum(times) for times in zip(*(variant.times_ms for variant in timed), strict=True)])
    both.median_ms = float(np.median(both.times_ms))
    both.goal = {"seconds_for_5000": 240}
    for variant in (*timed, both):
        variant.speedup = None  # parts of one whole
        variant.facts = {"seconds_for_5000": (variant.median_ms or 0) / 1000 * COCO_IMAGES / images}
    return [Group("evaluation", f"{images} images of {size[1]}x{size[0]}, {masks} masks each", [*timed, both])]


def random_detections(rng: np.random.Generator, count: int, size: Size) -> dict[str, Tensor]:
    """Detections of one image: masks (N, H, W) with their boxes, labels and scores."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    ragged = 1 + 0.15 * np.sin(x / 3) * np.cos(y / 4)
    masks = np.zeros((count, *size), bool)
    for mask in masks:
        radius = np.exp(rng.uniform(np.log(6), np.log(150), 2))
        center = rng.uniform((0, 0), size[::-1])
        mask[:] = ((x - center[0]) / radius[0]) ** 2 + ((y - center[1]) / radius[1]) ** 2 < ragged
    boxes = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0)).view(np.uint8)))
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(rng.integers(1, CLASSES + 1, count)),
        "scores": torch.from_numpy(rng.random(count)),
        "masks": torch.from_numpy(masks),
    }


def encode_all(pool: list[dict[str, Tensor]], images: int) -> list[Result]:
    """COCO results of images 1, 2, ..., whose detections are those of the pool in turn."""
    categories = range(1, CLASSES + 1)
    return [r for i in range(images) for r in encode_results(pool[i % len(pool)], i + 1, categories)]


def ground_truth(results: list[Result], images: int, masks: int, size: Size, objects: int = 7) -> dict[str, Any]:
    """COCO data in which some of each image's results are objects."""
    data: dict[str, Any] = {"annotations": []}
    data["images"] = [{"id": i + 1, "file_name": f"{i}", "height": size[0], "width": size[1]} for i in range(images)]
    data["categories"] = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    for i in range(images):
        for result in results[i * masks : i * masks + objects]:
            annotation = {k: result[k] for k in ("image_id", "category_id", "bbox", "segmentation")}
            data["annotations"].append({**annotation, "id": len(data["annotations"]) + 1, "iscrowd": 0})
    return data
