"""What one location of a CondInst draws, as a figure with everything on the way, and as small pictures for a widget."""

import base64
import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor

from condinst_edu.mask_head import split_parameters
from condinst_edu.teach.interactive import Segment, describe
from condinst_edu.teach.pictures import COLORS, draw_filters, draw_image, draw_map
from condinst_edu.teach.point_segment import PointSegment

MASK_COLOR = COLORS(1)[:3]  # orange: apart from the blue and red of the maps
PER_ROW = 8  # activations beside each other
TILE = 72  # pixels of a widget's small maps, at least
LOGIT_LIMIT = 10.0  # beyond it a probability is 0 or 1, and colour is better spent on the border


def show_segment(segment: Segment | PointSegment, image: Tensor, class_names: Sequence[str] = ()) -> Figure:
    """From a location to its mask: image, coordinate maps, logits, mask, then theta as filters, then the hidden layers.

    image (3, H, W) in [0, 1], the one that the segment is of; class_names: of labels 1, 2, ... For a point of AdaptIS:
    image, coordinate maps, heat map, mask, then what AdaIN makes of its maps.
    """
    if isinstance(segment, PointSegment):
        return _show_point(segment, image, class_names)
    hidden = segment.activations[:-1]
    rows = [-(-len(maps) // PER_ROW) for maps in hidden]
    aspect = image.shape[1] / image.shape[2]
    heights = [2.7 * aspect + 0.3, 2.6, *(rows_of * (1.25 * aspect) + 0.5 for rows_of in rows)]
    figure = Figure(figsize=(10.5, sum(heights) + 0.4), facecolor="white", layout="constrained")
    figure.suptitle(describe(segment, class_names), fontsize=11)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).flat)
    _draw_result(parts[0], segment, image)
    draw_filters(parts[1], segment.theta, segment.seen.model.mask_head.channels)
    parts[1].suptitle(f"theta: the {segment.theta.numel()} numbers of this location, as filters", fontsize=10)
    for i, (part, maps) in enumerate(zip(parts[2:], hidden, strict=True), start=1):
        _draw_layer(part, maps, f"layer {i} after ReLU: {len(maps)} channels")
    return figure


def _show_point(segment: PointSegment, image: Tensor, class_names: Sequence[str]) -> Figure:
    maps = [] if segment.coordinates is None else list(segment.coordinates)
    aspect = image.shape[1] / image.shape[2]
    rows = -(-len(segment.after) // PER_ROW)
    heights = [2.6 * aspect + 0.3, rows * (1.25 * aspect) + 0.5, rows * (1.25 * aspect) + 0.5]
    figure = Figure(figsize=(10.5, sum(heights) + 0.4), facecolor="white", layout="constrained")
    figure.suptitle(describe(segment, class_names), fontsize=11)
    parts = list(figure.subfigures(3, 1, height_ratios=heights, squeeze=False).flat)
    axes = list(parts[0].subplots(1, 3 + len(maps), squeeze=False).flat)
    draw_image(axes[0], image)
    _outline(axes[0], segment)
    for ax, values, name in zip(axes[1:], maps, ("x", "y", "distance"), strict=False):
        draw_map(ax, values, f"coordinate {name}", 1)
    picture = axes[-2].imshow(segment.probability.cpu().numpy(), cmap="magma", vmin=0, vmax=1)
    axes[-2].set_title("heat map: probability", fontsize=9)
    parts[0].colorbar(picture, ax=axes[-2], shrink=0.7)
    axes[-1].imshow(segment.mask.cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    axes[-1].set_title("mask", fontsize=9)
    for ax in axes[1:]:
        ax.set(xticks=[], yticks=[])
    _draw_layer(parts[1], segment.before, f"before AdaIN: {len(segment.before)} channels, the same for near points")
    _draw_layer(parts[2], segment.after, "after AdaIN, with this point's scale and shift for each channel")
    return figure


def _outline(axes: Axes, segment: Segment | PointSegment) -> None:
    """The outline of the mask and its location."""
    mask = segment.mask.cpu()
    if mask.any() and not mask.all():
        axes.contour(mask.float().numpy(), levels=[0.5], colors=[MASK_COLOR], linewidths=1.8)
    axes.plot(*segment.location, "o", markersize=7, color="white", markeredgecolor="black", markeredgewidth=1.4)
    axes.set_title("location and outline", fontsize=9)


def _draw_result(part: SubFigure, segment: Segment, image: Tensor) -> None:
    """Image with location and outline, the coordinate maps if there are any, logits, mask."""
    coordinates = [] if segment.coordinates is None else list(segment.coordinates)
    ratios = [1.35, *(1.0 for _ in coordinates), 1.0, 0.85]
    axes = list(part.subplots(1, len(ratios), width_ratios=ratios, squeeze=False).flat)
    draw_image(axes[0], image)
    _outline(axes[0], segment)
    for ax, values, name in zip(axes[1:], coordinates, "xy", strict=False):
        picture = draw_map(ax, values, f"coordinate {name}", _limit(torch.stack(coordinates)))
        part.colorbar(picture, ax=ax, shrink=0.7)
        if values.min() < 0 < values.max():
            ax.contour(values.cpu().numpy(), levels=[0], colors="black", linewidths=1)
    picture = draw_map(axes[-2], segment.logits, "logits", _logit_limit(segment))
    part.colorbar(picture, ax=axes[-2], shrink=0.7)
    axes[-1].imshow(segment.mask.cpu().numpy(), cmap="gray", vmin=0, vmax=1)
    axes[-1].set(xticks=[], yticks=[])
    axes[-1].set_title("mask", fontsize=9)


def _draw_layer(part: SubFigure, maps: Tensor, title: str) -> None:
    """A layer's channels (C, H, W) in one range, so that a channel that says little looks so."""
    rows = -(-len(maps) // PER_ROW)
    axes = list(part.subplots(rows, PER_ROW, squeeze=False).flat)
    for ax, values in zip(axes, maps, strict=False):
        picture = draw_map(ax, values, "", _limit(maps))
    for unused in axes[len(maps) :]:
        unused.set_axis_off()
    part.suptitle(title, fontsize=10)
    part.colorbar(picture, ax=axes, shrink=0.9)


def _limit(values: Tensor) -> float:
    return float(values.abs().max().clamp(min=1e-6))


def _logit_limit(segment: Segment) -> float:
    return min(_limit(segment.logits), LOGIT_LIMIT)


# --------------------------------------------------------------------------------------- small pictures for the widget


def small_pictures(segment: Segment | PointSegment) -> list[tuple[str, bytes]]:
    """Caption and PNG of what lies between a location and its mask; milliseconds, where `show_segment` takes a second.

    Blue is negative, white 0, red positive; the caption says what the darkest red is.
    """
    if isinstance(segment, PointSegment):
        return _small_of_point(segment)
    pictures = []
    if segment.coordinates is not None:
        kind = segment.seen.model.mask_head.coordinates
        pictures.append(_small(f"{kind} coordinates x, y", list(segment.coordinates)))
    weights, biases = split_parameters(segment.theta[None], segment.seen.model.mask_head.channels)
    filters = [x for w, b in zip(weights, biases, strict=True) for x in (w[0], b[0][:, None])]
    pictures.append(_small(f"theta: {segment.theta.numel()} numbers, as weights and biases", filters, 8))
    for i, maps in enumerate(segment.activations[:-1], start=1):
        pictures.append(_small(f"layer {i} after ReLU: {len(maps)} channels", list(maps)))
    limit = _logit_limit(segment)
    pictures.append(_small("logits", [segment.logits.clamp(-limit, limit)]))
    return pictures


def _small_of_point(segment: PointSegment) -> list[tuple[str, bytes]]:
    heat = mpl.colormaps["magma"](segment.probability.cpu().numpy(), bytes=True)
    pictures = [("heat map: probability, 0 black, 1 white", png(np.ascontiguousarray(heat.repeat(2, 0).repeat(2, 1))))]
    if segment.coordinates is not None:
        pictures.append(_small("relative coordinates x, y", list(segment.coordinates)))
    numbers = [segment.embedding[None], segment.vector[None], segment.scale[None], segment.shift[None]]
    names = ("embedding", "vector", "AdaIN's scale", "AdaIN's shift")
    pictures += [_small(f"{name}: {x.numel()} numbers", [x], 12) for name, x in zip(names, numbers, strict=True)]
    return [*pictures, _small("after AdaIN, the first 4 channels", list(segment.after[:4]))]


def _small(caption: str, maps: list[Tensor], zoom: int | None = None) -> tuple[str, bytes]:
    """Maps (h, w) beside each other in one range, with transparent gaps; zoom: pixels per cell."""
    zoom = zoom or max(1, -(-TILE // max(maps[0].shape)))
    limit = max(_limit(values) for values in maps)
    painted = [mpl.colormaps["RdBu_r"]((values.cpu().numpy() / limit + 1) / 2, bytes=True) for values in maps]
    painted = [tile.repeat(zoom, axis=0).repeat(zoom, axis=1) for tile in painted]  # (h * zoom, w * zoom, 4)
    height, width = max(len(tile) for tile in painted), sum(tile.shape[1] + 4 for tile in painted) - 4
    canvas, x = np.zeros((height, width, 4), dtype=np.uint8), 0
    for tile in painted:
        canvas[: tile.shape[0], x : x + tile.shape[1]] = tile
        x += tile.shape[1] + 4
    return f"{caption} (up to ±{limit:.3g})", png(canvas)


def mask_overlay(mask: Tensor) -> bytes:
    """A mask (H, W) bool as a PNG to lay over its image: half transparent, its outermost pixels opaque."""
    mask = mask.cpu()
    inner = -F.max_pool2d(-mask.float()[None], 3, stride=1, padding=1)[0] > 0  # eroded by a pixel
    color = torch.tensor([round(255 * c) for c in MASK_COLOR], dtype=torch.uint8)
    overlay = torch.zeros(*mask.shape, 4, dtype=torch.uint8)
    overlay[..., :3] = color
    overlay[..., 3] = 255 * (mask & ~inner) + 110 * inner
    return png(overlay.numpy())


def image_png(image: Tensor) -> bytes:
    """An image (3, H, W) in [0, 1] as a PNG."""
    return png((image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def png(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3 or 4) uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def figure_png(figure: Figure, dpi: int = 90) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def data_url(picture: bytes) -> str:
    """A PNG as the address of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
