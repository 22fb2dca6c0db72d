"""Bacteria: the toy problem of AdaptIS, drawn in a few milliseconds, the same for the same (seed, index).

Many cells of one colour with a border lie over each other, so that their boxes say little about which is which. The
authors' generator was never published: this one follows section 6 of the paper, and the images that the authors' code
repository shows for all that the paper leaves open (how wide cells are, how the border fades, blur and noise). Those
images are red with a blue border; the paper, which says it the other way round, shows them with channels swapped.

The order of an image: cells are placed from front to back, each with enough of it in sight; painted from back to front
over the background; then blurred and covered with noise, or not. `Bacteria` hands them out as `CocoDataset` would.

N cells, H, W image, h, w the window around one cell, P points of its spine.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from torch import Tensor

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.coco_json import Coco
from condinst_edu.errors import UserError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

GENERATOR = 1  # counts up whenever the same (seed, index) begins to give another picture
VAL_START = 10_000_000  # test images are numbers of the same series that no training set reaches


@dataclass(frozen=True)
class BacteriaConfig:
    """What the pictures are like; the defaults are the paper's toy problem.

    size: (height, width) in pixels; cells: (least, most) per image; length, width: (least, most) of a cell in pixels,
    round ends included; margin: pixels between the image's edge and the nearest centre of a cell; bend: most radians
    that a cell turns along its length; blobs: share of cells that are round; blobs_width: their (least, most) pixels;
    least_visible: pixels that each cell shows; fill, border: colours, each cell's own within `spread` of 0..255;
    clouds: how far the background's colour varies; blur: (least, most) pixels of a box filter, and noise: standard
    deviations (of 0..255) between which one is drawn, each for `effects` of all images.
    """

    size: tuple[int, int] = (96, 96)
    cells: tuple[int, int] = (8, 22)
    length: tuple[float, float] = (18.0, 37.0)
    width: tuple[float, float] = (7.5, 10.5)
    margin: float = 24.0
    bend: float = 0.0
    blobs: float = 0.0
    blobs_width: tuple[float, float] = (10.0, 18.0)
    least_visible: int = 30
    fill: tuple[float, float, float] = (250, 2, 2)
    border: tuple[float, float, float] = (16, 10, 194)
    background: tuple[float, float, float] = (254, 254, 254)
    spread: float = 0.0
    clouds: float = 0.0
    blur: tuple[int, int] = (2, 4)
    noise: tuple[float, float] = (10.0, 40.0)
    effects: float = 0.5

    def __post_init__(self) -> None:
        if min(self.size) < 2 * self.margin + 1:
            raise ValueError(f"an image of {self.size} pixels has no place for cells {self.margin:g} from its edge")
        if not 0 < self.cells[0] <= self.cells[1]:
            raise ValueError(f"cells is (least, most) with 0 < least <= most, not {self.cells}")


def paper_config() -> BacteriaConfig:
    """The toy problem of the paper: 96 x 96 pixels, 8 to 22 straight cells. Source: adaptis:toy-data."""
    return BacteriaConfig()


def second_config() -> BacteriaConfig:
    """The code's second version: 128 x 128 pixels, 12 to 52 bent cells and round ones, in front of clouds."""
    return BacteriaConfig(
        size=(128, 128),
        cells=(12, 52),
        margin=17.0,
        length=(17.0, 55.0),
        width=(6.5, 9.5),
        bend=2.2,
        blobs=0.2,
        least_visible=37,
        fill=(44, 110, 202),
        border=(104, 166, 232),
        background=(161, 194, 208),
        spread=11.0,
        clouds=12.0,
        blur=(2, 2),
        noise=(0.0, 3.0),
        effects=1.0,
    )


CONFIGS = {"bacteria": paper_config, "bacteria-v2": second_config}


class BacteriaSample(NamedTuple):
    """image (H, W, 3) uint8 RGB; ids (H, W) uint16, 0 for the background, k for the k-th of num_cells."""

    image: NDArray[np.uint8]
    ids: NDArray[np.uint16]
    num_cells: int

    @property
    def masks(self) -> Bools:
        """What is seen of each cell (N, H, W)."""
        return self.ids == np.arange(1, self.num_cells + 1)[:, None, None]


def generate(index: int, seed: int = 0, config: BacteriaConfig | None = None) -> BacteriaSample:
    """Draw picture number `index` of the series `seed`, both at least 0. Source: adaptis:toy-data."""
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are at least 0, not {index} and {seed}")
    config = config or BacteriaConfig()
    rng = np.random.default_rng((seed, index))
    cells = place_cells(rng, config)
    order = rng.permutation(len(cells))  # so that an id says nothing about who is in front
    ids = np.zeros(config.size, np.uint16)
    for k, i in enumerate(order, start=1):
        ids[cells[i].window][cells[i].seen] = k
    canvas = _background(rng, config)  # (H, W, 3)
    for cell in reversed(cells):
        _paint(rng, canvas, cell, config)
    _disturb(rng, canvas, config)
    return BacteriaSample((canvas.clip(0, 255) + 0.5).astype(np.uint8), ids, len(cells))


# ---------------------------------------------------------------------------------------------------------- geometry


class Cell(NamedTuple):
    """A cell in its place: depth (h, w) below its edge in pixels, negative outside; seen (h, w) bool."""

    window: tuple[slice, slice]
    depth: Floats
    seen: Bools


def place_cells(rng: np.random.Generator, config: BacteriaConfig) -> list[Cell]:
    """Cells from front to back: a new one hides nothing, so what it shows is settled at once.

    One that shows too little is drawn anew elsewhere, at most twenty times, then left out.
    """
    free: Bools = np.ones(config.size, bool)
    cells: list[Cell] = []
    for _ in range(rng.integers(config.cells[0], config.cells[1], endpoint=True)):
        for _ in range(20):
            spine, radius = _draw_spine(rng, config)
            window, depth = _depth(spine, radius, config.size)
            seen = (depth >= 0) & free[window]
            if np.count_nonzero(seen) >= config.least_visible:
                free[window] &= ~seen
                cells.append(Cell(window, depth, seen))
                break
    return cells


def _draw_spine(rng: np.random.Generator, config: BacteriaConfig) -> tuple[Floats, float]:
    """The line (P, 2), as (x, y), that a cell of the returned radius lies around: straight, or an arc."""
    height, width = config.size
    center = rng.uniform(config.margin, (width - config.margin, height - config.margin))
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < config.blobs:
        radius = rng.uniform(*config.blobs_width) / 2
        length = radius * rng.uniform(0, 0.8)
    else:
        radius = rng.uniform(*config.width) / 2
        length = rng.uniform(*config.length) - 2 * radius
    turn = rng.uniform(-config.bend, config.bend)
    steps = 6 if config.bend else 1
    headings = angle + turn * ((np.arange(steps) + 0.5) / steps - 0.5)
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / steps
    line = np.concatenate([np.zeros((1, 2)), moves.cumsum(axis=0)])
    return (line - (line[0] + line[-1]) / 2 + center).astype(np.float32), radius


def _depth(spine: Floats, radius: float, size: tuple[int, int]) -> tuple[tuple[slice, slice], Floats]:
    """The window around a spine (P, 2), cut off at the image's edge, and how far its pixels lie inside the cell."""
    low = np.floor(spine.min(axis=0) - radius - 2).astype(int).clip(0)
    high = np.ceil(spine.max(axis=0) + radius + 3).astype(int).clip(0, (size[1], size[0]))
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
    nearest = np.full(x.shape, np.inf, np.float32)  # squared distance to the line
    for (x1, y1), (dx, dy) in zip(spine[:-1], np.diff(spine, axis=0), strict=True):
        along = ((x - x1) * dx + (y - y1) * dy) / max(dx * dx + dy * dy, 1e-6)
        along = along.clip(0, 1)
        np.minimum(nearest, (x - x1 - along * dx) ** 2 + (y - y1 - along * dy) ** 2, out=nearest)
    return (slice(low[1], high[1]), slice(low[0], high[0])), np.float32(radius) - np.sqrt(nearest)


# ------------------------------------------------------------------------------------------------------------ colours


def _background(rng: np.random.Generator, config: BacteriaConfig) -> Floats:
    canvas = np.empty((*config.size, 3), np.float32)
    canvas[:] = config.background
    if config.clouds:  # smooth noise, strongest in red, as in the authors' images
        height, width = config.size
        for cells in (3, 8):
            coarse = torch.from_numpy(rng.standard_normal((1, 1, cells, cells), np.float32))
            smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
            canvas += config.clouds * smooth[0, 0, :, :, None].numpy() * np.array([1, 0.4, 0.2], np.float32)
    return canvas


def _paint(rng: np.random.Generator, canvas: Floats, cell: Cell, config: BacteriaConfig) -> None:
    """One cell over what lies behind it: from the border's colour outside its edge to the fill's, over 3.5 pixels."""
    own = rng.normal(0, config.spread, 3) if config.spread else np.zeros(3)
    fill, border = ((np.array(color) + own).astype(np.float32) for color in (config.fill, config.border))
    inner = ((cell.depth + 0.6) / 3.5).clip(0, 1)[:, :, None]
    opacity = (cell.depth + 0.8).clip(0, 1)[:, :, None]  # the edge is smooth
    part = canvas[cell.window]
    part += opacity * (border + inner * (fill - border) - part)


def _disturb(rng: np.random.Generator, canvas: Floats, config: BacteriaConfig) -> None:
    """Blur by a box filter, then noise, the same in the three channels, in place; each to a share of the images."""
    width, std = int(rng.integers(config.blur[0], config.blur[1], endpoint=True)), rng.uniform(*config.noise)
    if rng.random() < config.effects:
        for axis in (0, 1):
            pads = [(width // 2, width - 1 - width // 2) if i == axis else (0, 0) for i in range(3)]
            total = np.pad(canvas, pads, mode="edge").cumsum(axis=axis, dtype=np.float64)
            total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis=axis)
            n = canvas.shape[axis]
            canvas[:] = (total.take(range(width, width + n), axis) - total.take(range(n), axis)) / width
    if rng.random() < config.effects:
        canvas += std * rng.standard_normal((*config.size, 1), np.float32)


# ------------------------------------------------------------------------------------------------------------ dataset


class Bacteria(CocoDataset):
    """`count` pictures from number `start` of a series on, drawn when they are asked for; one class, "cell".

    Samples are as of `CocoDataset`; no file is read, and `truth` makes the annotations for scoring.
    """

    def __init__(self, count: int, start: int = 0, seed: int = 0, config: BacteriaConfig | None = None) -> None:
        if count < 1:
            raise UserError(f"a set has an image or more, not {count}")
        self.config, self.seed, self.start = config or BacteriaConfig(), seed, start
        self.image_folder, self.annotation_file = "", "drawn bacteria"
        self.category_ids, self.class_names, self.dropped, self.outlines = [1], ["cell"], 0, False
        self.image_ids = list(range(start + 1, start + count + 1))
        self.file_names = [f"bacteria {i}" for i in self.image_ids]
        self.sizes = [self.config.size] * count

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Image (3, H, W) uint8 and its target, as `CocoDataset`; masks are what is seen of each cell."""
        index = range(len(self))[index]
        sample = generate(self.start + index, self.seed, self.config)
        return torch.from_numpy(sample.image).permute(2, 0, 1), self._target(sample, index)

    def image(self, index: int) -> Tensor:
        return self[index][0]

    def target(self, index: int) -> dict[str, Any]:
        return self[index][1]

    def _target(self, sample: BacteriaSample, index: int) -> dict[str, Any]:
        masks = torch.from_numpy(sample.masks)
        rows, columns = masks.any(dim=2).byte(), masks.any(dim=1).byte()  # (N, H), (N, W)
        height, width = self.config.size
        low = [x.argmax(dim=1) for x in (columns, rows)]
        high = [side - x.flip(1).argmax(dim=1) for x, side in ((columns, width), (rows, height))]
        return {
            "boxes": torch.stack([*low, *high], dim=1).float(),
            "labels": torch.ones(len(masks), dtype=torch.int64),
            "masks": masks,
            "iscrowd": torch.zeros(len(masks), dtype=torch.bool),
            "image_id": self.image_ids[index],
        }

    @cached_property
    def _annotations(self) -> Coco:
        objects: list[dict[str, Any]] = []
        for i, image_id in enumerate(self.image_ids):
            masks = self.target(i)["masks"].numpy()
            for rle in mask_utils.encode(np.asfortranarray(masks.transpose(1, 2, 0).view(np.uint8))):
                area, box = float(mask_utils.area(rle)), mask_utils.toBbox(rle).tolist()
                segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
                entry = {"id": len(objects) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": area}
                objects.append({**entry, "bbox": box, "segmentation": segmentation})
        images = [
            {"id": i, "file_name": name, "height": h, "width": w}
            for i, name, (h, w) in zip(self.image_ids, self.file_names, self.sizes, strict=True)
        ]
        return {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cell"}]}

    def truth(self) -> Coco:
        """The annotations of all images, as a COCO file has them."""
        return self._annotations


def open_bacteria(name: str, training: bool) -> Bacteria:
    """The images to learn from or to test on, as many as the authors have. Errors: UserError for an unknown name."""
    if name not in CONFIGS:
        raise UserError(f"there are no drawn images {name!r}: choose from {', '.join(CONFIGS)}")
    train, test = (10_000, 2_000) if name == "bacteria" else (25_000, 1_000)
    return Bacteria(train, 0, config=CONFIGS[name]()) if training else Bacteria(test, VAL_START, config=CONFIGS[name]())
