"""`condinst-edu bench loader`: training samples a second on one core, beside torchvision's v2 transforms.

A set of COCO's sizes is drawn: JPEG files of 640x480 with 7 objects on average, their outlines polygons of COCO's usual
lengths. All variants read the same files with the same reader, in this process, image by image: short side to 800, half
of the images mirrored, to float32 in [0, 1].

    torchvision v2   masks of the stored size; image, full mask planes and boxes through `torchvision.transforms.v2`
    stored masks     our transform of the same masks: it reads only the pixels that the mask map needs
    outlines         our transform of the polygons: no full-size mask is made
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from condinst_edu.bench import Bench, Group, race
from condinst_edu.datasets.batching import build_train_loader
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.transforms import Target, TrainTransform
from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size

SHORT_SIDE, MAX_SIZE, MASK_STRIDE = 800, 1333, 4
RUNS = 3


def run(options: Bench, runs: int, progress: Progress) -> list[Group]:
    return bench_loader(runs, progress, images=options.images)


def conclude(groups: list[Group]) -> str:
    """What the numbers say."""
    outlines = groups[0]["outlines"]
    return (
        f"One core loads {outlines.facts['images_per_second']:.0f} images a second, "
        f"{outlines.speedup:.1f} times as many as through torchvision's transforms."
    )


def write_synthetic(folder: Path, images: int, size: Size = (480, 640), objects: float = 7, seed: int = 0) -> None:
    """A COCO folder of `images` JPEG files (`images/`, `instances.json`), `objects` polygons each on average."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "blob"}]}
    for i in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)) + rng.integers(-8, 9, (*size, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.jpg", quality=90)
        data["images"].append({"id": i, "file_name": f"{i}.jpg", "height": size[0], "width": size[1]})
        for _ in range(rng.poisson(objects - 1) + 1):
            polygon = random_outline(rng, size)
            (x1, y1), (x2, y2) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
            annotation: dict[str, Any] = {
                "id": len(data["annotations"]) + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
            }
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [polygon.reshape(-1).tolist()]}
            data["annotations"].append(annotation)
    (folder / "instances.json").write_text(json.dumps(data))


def random_outline(rng: np.random.Generator, size: Size) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A star-shaped polygon (P, 2) within the image, of 10 to 40 corners; its radius is log-uniform, from 2 % on."""
    corners = int(rng.integers(10, 41))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = min(size) * np.exp(rng.uniform(np.log(0.02), np.log(0.4))) * rng.uniform(0.7, 1, corners)
    center = rng.uniform((0, 0), size[::-1])
    points = center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.clip((0, 0), size[::-1]).round(2)


class TorchvisionTransform:
    """torchvision's v2 transforms on image, full mask planes and boxes, as a transform of our loader."""

    def __init__(self, short_side: int, max_size: int) -> None:
        steps = [
            v2.Resize(short_side, max_size=max_size),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        ]
        self.steps = v2.Compose(steps)

    def __call__(self, image: Tensor, target: Target, seed: int) -> tuple[Tensor, Target]:
        torch.manual_seed(seed)
        size = (image.shape[1], image.shape[2])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        moved, other = self.steps(
            tv_tensors.Image(image), {**target, "boxes": boxes, "masks": tv_tensors.Mask(target["masks"])}
        )
        plain = {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in other.items()}
        return moved.as_subclass(Tensor), plain


def bench_loader(
    runs: int, progress: Progress, images: int = 200, size: Size = (480, 640), short_side: int = SHORT_SIDE
) -> list[Group]:
    """Time for all images of a set that is drawn first. Errors: UserError where there is none to draw."""
    if images < 1:
        raise UserError(f"--images is at least 1, not {images}")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        write_synthetic(Path(folder), images, size)
        masks, outlines = (
            CocoDataset(Path(folder, "images"), Path(folder, "instances.json"), outlines=o) for o in (False, True)
        )
        ours = TrainTransform((short_side,), MAX_SIZE, 0.5, mask_stride=MASK_STRIDE)
        variants: dict[str, Callable[[], object]] = {
            "torchvision v2": partial(visit_all, masks, TorchvisionTransform(short_side, MAX_SIZE)),
            "stored masks": partial(visit_all, masks, ours),
            "outlines": partial(visit_all, outlines, ours),
        }
        timed = race("loader", variants, runs, progress)
    for variant in timed:
        variant.facts = {"images_per_second": 1000 * images / (variant.median_ms or 1)}
    timed[-1].goal = {"speedup": 2.5}
    what = f"{images} images of {size[1]}x{size[0]} to a short side of {short_side}, in one process"
    return [Group("loader", what, timed)]


def visit_all(dataset: CocoDataset, transform: Callable[[Tensor, Target, int], tuple[Tensor, Target]]) -> int:
    """Every image once, through the training loader; returns how many objects there were."""
    loader = build_train_loader(dataset, transform, 1, 0, len(dataset), seed=0)
    return sum(len(target["masks"]) for _, targets in loader for target in targets)
