"""Shapes: small landscapes with overlapping things, drawn in a few milliseconds, the same for the same (seed, index).

An image is made in the order in which this file reads: things are arranged (classes, sizes, places), coloured, laid out
over a background of *stuff*, painted from back to front, and covered with noise. Ground truth comes from the same
geometry, so it is exact to the pixel.

What makes it hard on purpose: in many images most things share one class, a third of them wear a neighbour's colour,
and they cover each other, so neither class nor colour says where one ends and the next begins; the place does.

N things, H, W image, h, w the window around one thing, cut off at the image's edge.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condinst_edu.datasets.shapes_background import STUFF, paint_background

THINGS = ("circle", "square", "triangle", "star", "ring")  # category ids 1 to 5; STUFF: 6 to 9
GENERATOR = 2  # counts up whenever the same (seed, index) begins to give another picture

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ShapesConfig:
    """What the pictures are like; the defaults are the course's, frozen, and a harder picture is another value here.

    `size` is (height, width) in pixels, `objects` the (least, most) things per image, `object_size` their (least, most)
    greatest extent in pixels. `min_visible` is the share of its own area that each thing shows. `dominated` is the
    share of images in which most things are of one class, `same_color` that of things in a neighbour's colour, `rims`
    that of things with a dark rim. `noise` is the standard deviation of the pixel noise, white being 1.

    Raises `ValueError` for values that no picture can have.
    """

    size: tuple[int, int] = (128, 128)
    objects: tuple[int, int] = (3, 8)
    object_size: tuple[float, float] = (18.0, 54.0)
    min_visible: float = 0.45
    dominated: float = 0.4
    same_color: float = 1 / 3
    rims: float = 0.8
    noise: float = 0.035

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise ValueError(f"size is (height, width) of at least 16 pixels each, not {self.size}.")
        limit = self.size[0] * self.size[1] // 64  # of the least size, 8 x 8 pixels, no more find room side by side
        if not 0 <= self.objects[0] <= self.objects[1] <= limit:
            raise ValueError(
                f"objects is (least, most) with 0 <= least <= most <= {limit}, one for every 8 x 8 pixels, "
                f"not {self.objects}."
            )
        if not 8 <= self.object_size[0] <= self.object_size[1] <= min(self.size):
            raise ValueError(
                f"object_size is (least, most) pixels with 8 <= least <= most <= the image's shorter side of "
                f"{min(self.size)}, not {self.object_size}."
            )
        for name in ("min_visible", "dominated", "same_color", "rims", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Thing:
    """How one thing was drawn: label 1..5, centre (x, y) and size in pixels, angle in radians, RGB, share seen."""

    label: int
    center: tuple[float, float]
    size: float
    angle: float
    color: tuple[float, ...]
    rim: bool
    visible: float


@dataclass(frozen=True)
class ShapesSample:
    """One picture with its whole ground truth; the things come in random order, the same in every field.

    `image` (H, W, 3) uint8 RGB; `boxes` (N, 4) float32 xyxy, tight around what is seen, x2 and y2 exclusive; `labels`
    (N,) int64 from 1; `masks` (N, H, W) bool, the visible parts, disjoint; `semantic` (H, W) uint8 category ids;
    `panoptic` (H, W) int32 segment ids, described by `segments_info` as in COCO (boxes there are x, y, width, height);
    `things` N descriptions of what was drawn.
    """

    image: NDArray[np.uint8]
    boxes: Floats
    labels: NDArray[np.int64]
    masks: Bools
    semantic: NDArray[np.uint8]
    panoptic: NDArray[np.int32]
    segments_info: list[dict[str, Any]]
    things: tuple[Thing, ...]


def categories() -> list[dict[str, Any]]:
    """The nine categories as COCO's panoptic files list them: id, name, supercategory, isthing, color (RGB 0..255)."""
    colors = [(224, 96, 80), (240, 176, 64), (160, 96, 208), (232, 112, 176), (96, 208, 208)]
    colors += [(160, 200, 240), (96, 160, 72), (40, 96, 160), (224, 200, 144)]
    kinds = ["thing"] * len(THINGS) + ["stuff"] * len(STUFF)
    return [
        {"id": i, "name": name, "supercategory": kind, "isthing": int(kind == "thing"), "color": list(color)}
        for i, (name, kind, color) in enumerate(zip(THINGS + STUFF, kinds, colors, strict=True), start=1)
    ]


def generate(index: int, seed: int = 0, config: ShapesConfig | None = None) -> ShapesSample:
    """Draw picture number `index` of the series `seed`, both at least 0.

    Raises `ValueError` where the configuration asks for more things than fit into the image.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed are at least 0, not {index} and {seed}.")
    config = config or ShapesConfig()
    rng = np.random.default_rng((seed, index))
    stamps = arrange(rng, config)
    things = _describe(rng, stamps, config)
    stuff, canvas = paint_background(rng, config.size)  # (H, W), (3, H, W)
    light = rng.uniform(0, 2 * math.pi)
    for stamp, thing in zip(reversed(stamps), reversed(things), strict=True):  # back to front
        _paint_thing(rng, canvas, stamp, thing, light)
    canvas += config.noise * rng.standard_normal(canvas.shape, np.float32)
    np.clip(canvas, 0, 1, out=canvas)
    canvas *= 255
    canvas += 0.5  # astype cuts off, this rounds
    image = np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))  # (H, W, 3)
    order = rng.permutation(len(stamps))  # so that the order says nothing about who is in front
    return _ground_truth(
        image, stuff + np.uint8(len(THINGS) + 1), [stamps[i] for i in order], tuple(things[i] for i in order)
    )


# Arrangement: which things, how large, where, and what is seen of each


@dataclass
class Stamp:
    """A thing in its place: `distance` (h, w) to its outline in pixels, negative inside; `seen` (h, w) bool."""

    label: int
    size: float
    angle: float
    center: tuple[float, float]
    window: tuple[slice, slice]
    distance: Floats
    seen: Bools
    visible: float


def arrange(rng: np.random.Generator, config: ShapesConfig) -> list[Stamp]:
    """Place things from front to back, so that a new one hides nothing and what it shows is settled at once.

    A thing that finds no place shrinks to the least size, then is left out. Raises `ValueError` if too few find one.
    """
    for _ in range(20):
        stamps: list[Stamp] = []
        taken: Bools = np.zeros(config.size, bool)
        for label in _draw_labels(rng, config):
            size = rng.uniform(*config.object_size)
            stamp = _place(rng, config, taken, stamps, label, size)
            stamp = stamp or _place(rng, config, taken, stamps, label, config.object_size[0])
            if stamp:
                taken[stamp.window] |= stamp.seen
                stamps.append(stamp)
        if len(stamps) >= config.objects[0]:
            return stamps
    raise ValueError(
        f"{config.objects[0]} things of {config.object_size[0]:g} pixels, each at least {config.min_visible:.0%} "
        f"visible, do not fit into an image of {config.size[0]} x {config.size[1]} pixels: ask for fewer or smaller."
    )


def _draw_labels(rng: np.random.Generator, config: ShapesConfig) -> list[int]:
    count = int(rng.integers(config.objects[0], config.objects[1], endpoint=True))
    labels = rng.integers(1, len(THINGS), count, endpoint=True)
    if rng.random() < config.dominated:
        labels[: math.ceil(0.75 * count)] = rng.integers(1, len(THINGS), endpoint=True)
    return rng.permutation(labels).tolist()


def _place(
    rng: np.random.Generator, config: ShapesConfig, taken: Bools, stamps: list[Stamp], label: int, size: float
) -> Stamp | None:
    """Try thirty places for one thing; the outline is computed once, since trying shifts it by whole pixels."""
    side = math.ceil(size) + 4  # room for smooth edges and a centre between two pixels
    offset = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5))  # x, y
    angle = rng.uniform(0, 2 * math.pi)
    distance = _outline(label, size, angle, side, offset)
    inside = distance <= 0
    least = config.min_visible * np.count_nonzero(inside)
    for _ in range(30):
        x, y = _propose(rng, config.size, stamps, size)
        left, top = x - side // 2, y - side // 2
        rows, down = _cut(top, side, taken.shape[0])
        columns, right = _cut(left, side, taken.shape[1])
        window = (down, right)
        seen = inside[rows, columns] & ~taken[window]
        shown = np.count_nonzero(seen)
        if shown and shown >= least:
            center = (left + (side - 1) / 2 + offset[0], top + (side - 1) / 2 + offset[1])
            share = shown / np.count_nonzero(inside)
            return Stamp(label, size, angle, center, window, distance[rows, columns], seen, share)
    return None


def _cut(first: int, length: int, end: int) -> tuple[slice, slice]:
    """The part of first .. first + length that lies in 0 .. end: as a slice of the patch, and of the image."""
    low, high = max(0, first), min(end, first + length)
    return slice(low - first, high - first), slice(low, high)


def _propose(rng: np.random.Generator, size: tuple[int, int], stamps: list[Stamp], across: float) -> tuple[int, int]:
    """A centre (x, y), anywhere or, half of the time, close enough to an earlier thing to overlap it."""
    height, width = size
    margin = 0.3 * across  # the edge may cut off a fifth
    x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    if stamps and rng.random() < 0.5:
        other = stamps[int(rng.integers(len(stamps)))]
        apart = rng.uniform(0.3, 0.6) * (across + other.size)
        toward = rng.uniform(0, 2 * math.pi)
        x = min(max(other.center[0] + apart * math.cos(toward), margin), width - margin)
        y = min(max(other.center[1] + apart * math.sin(toward), margin), height - margin)
    return int(x), int(y)


# Corners, inner radius over outer radius, greatest extent over outer radius
_POLYGONS = {
    "triangle": (3, math.cos(math.pi / 3), math.sqrt(3)),
    "square": (4, math.cos(math.pi / 4), 2.0),
    "star": (5, 0.5, 2 * math.sin(2 * math.pi / 5)),
}
_RING_WIDTH = 0.45  # of its radius


def _outline(label: int, size: float, angle: float, side: int, offset: tuple[float, float]) -> Floats:
    """Distance (side, side) in pixels to the outline of a thing at the patch's middle + offset, negative inside."""
    x, y = _grid(side)
    x, y = x - offset[0], y - offset[1]
    radius: Floats = np.sqrt(x * x + y * y)  # (side, side)
    name = THINGS[label - 1]
    if name == "circle":
        return radius - size / 2
    if name == "ring":
        width = _RING_WIDTH * size / 2
        return np.abs(radius - (size - width) / 2) - width / 2
    # A polygon or star is one edge folded around the centre, from the point (inner, 0) to a corner at the angle `half`
    corners, ratio, extent = _POLYGONS[name]
    outer, half = size / extent, math.pi / corners
    inner = ratio * outer
    folded = np.abs(np.mod(np.arctan2(y, x) - angle, 2 * half) - half)
    normal = math.atan2(inner - outer * math.cos(half), outer * math.sin(half))
    return radius * np.cos(folded - normal) - inner * math.cos(normal)


@cache
def _grid(side: int) -> tuple[Floats, Floats]:
    """Pixel coordinates x (1, side) and y (side, 1), 0 in the middle."""
    line = np.arange(side, dtype=np.float32) - (side - 1) / 2
    return line[None], line[:, None]


# Looks of the things


def _describe(rng: np.random.Generator, stamps: list[Stamp], config: ShapesConfig) -> list[Thing]:
    colors = _draw_colors(rng, stamps, config.same_color)
    rims = rng.random(len(stamps)) < config.rims
    return [
        Thing(s.label, s.center, s.size, s.angle, tuple(color.tolist()), bool(rim), s.visible)
        for s, color, rim in zip(stamps, colors, rims, strict=True)
    ]


def _draw_colors(rng: np.random.Generator, stamps: list[Stamp], same_color: float) -> NDArray[np.float64]:
    """RGB (N, 3): any hue, the background's among them; then some things take the colour of their nearest neighbour.

    Takers and givers are apart, or a chain of takers would end with different colours. A neighbour of one's own class
    counts as twice as near.
    """
    count = len(stamps)
    hue, saturation, value = rng.random((3, count, 1))
    saturation, value = 0.35 + 0.5 * saturation, 0.5 + 0.45 * value
    wheel = np.abs((hue * 6 + [0, 4, 2]) % 6 - 3) - 1  # (N, 3): red, green and blue around the colour circle
    colors = value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))
    taking = min(int(count * same_color + rng.random()), count - 1)  # rounds up as often as keeps the mean
    order = rng.permutation(count).tolist()
    for taker in order[: max(taking, 0)]:
        mine = stamps[taker]
        giver = min(
            order[taking:],
            key=lambda i: math.dist(mine.center, stamps[i].center) * (0.5 if stamps[i].label == mine.label else 1.0),
        )
        colors[taker] = colors[giver]
    return colors


def _paint_thing(rng: np.random.Generator, canvas: Floats, stamp: Stamp, thing: Thing, light: float) -> None:
    """Paint over the canvas (3, H, W): lit from one side, striped or plain, darker at the rim, smooth at the edge."""
    rows, columns = stamp.window
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - stamp.center[0]  # (1, w)
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - stamp.center[1]  # (h, 1)
    slope = rng.uniform(0.1, 0.5) / stamp.size
    shade = x * (slope * math.cos(light)) + (y * (slope * math.sin(light)) + 1)  # (h, w)
    contrast, period, phase = rng.uniform(0, 0.12), rng.uniform(4, 9), rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.5:
        wave = 2 * math.pi / period
        across = x * (wave * math.cos(stamp.angle)) + y * (wave * math.sin(stamp.angle))
        shade += contrast * np.sin(across + phase)
    if thing.rim:
        width = max(1.2, 0.035 * stamp.size)
        shade *= 1 - 0.55 * np.clip(stamp.distance + (width + 0.5), 0, 1)
    color = np.array(thing.color, np.float32)[:, None, None]
    patch = canvas[:, rows, columns]  # (3, h, w)
    patch += np.clip(0.5 - stamp.distance, 0, 1) * (color * shade - patch)


# Ground truth


def _ground_truth(
    image: NDArray[np.uint8], semantic: NDArray[np.uint8], stamps: list[Stamp], things: tuple[Thing, ...]
) -> ShapesSample:
    masks: Bools = np.zeros((len(stamps), *semantic.shape), bool)
    boxes: Floats = np.zeros((len(stamps), 4), np.float32)
    panoptic: NDArray[np.int32] = np.zeros(semantic.shape, np.int32)
    segments: list[dict[str, Any]] = []
    for n, stamp in enumerate(stamps):
        masks[n][stamp.window] = stamp.seen
        semantic[stamp.window][stamp.seen] = stamp.label
        panoptic[stamp.window][stamp.seen] = n + 1
        rows, columns = stamp.window
        segments.append(_segment(n + 1, stamp.label, stamp.seen, columns.start, rows.start))
        x, y, width, height = segments[-1]["bbox"]
        boxes[n] = x, y, x + width, y + height
    for category in range(len(THINGS) + 1, len(THINGS) + len(STUFF) + 1):
        region = semantic == category
        if region.any():
            panoptic[region] = len(segments) + 1
            segments.append(_segment(len(segments) + 1, category, region))
    labels = np.array([thing.label for thing in things], np.int64)
    return ShapesSample(image, boxes, labels, masks, semantic, panoptic, segments, things)


def _segment(number: int, category: int, mask: Bools, x: int = 0, y: int = 0) -> dict[str, Any]:
    """COCO's entry for a segment whose mask (h, w), with at least one pixel, begins at (x, y) of the image."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "category_id": category,
        "isthing": int(category <= len(THINGS)),
        "area": int(np.count_nonzero(mask)),
        "bbox": [x + left, y + top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "iscrowd": 0,
    }
