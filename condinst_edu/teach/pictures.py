"""Figures for the lessons: one function each, on plain tensors, opaque so that dark themes show them as they are.

Every function returns the figure and leaves showing it to the notebook. Legend: N instances, C channels, H, W map.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from condinst_edu.fcos import Points
from condinst_edu.mask_head import split_parameters

COLORS = mpl.colormaps["tab10"]


class Picture(Figure):
    """A figure that a notebook shows as it is, whatever its settings for matplotlib are, in 256 colours: small."""

    def _repr_png_(self) -> bytes:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=80)
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A white figure outside pyplot (nothing to close), and its axes row by row; sizes of one axes in inches."""
    figure = Picture(figsize=(columns * width, rows * height), facecolor="white", layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def draw_image(axes: Axes, image: Tensor) -> None:
    """An image (3, H, W) in [0, 1] without ticks; pixel (x, y) is drawn around the point (x, y)."""
    axes.imshow(image.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
    axes.set_axis_off()


def draw_map(axes: Axes, values: Tensor, title: str, limit: float) -> Any:
    """A map (H, W) in blue (negative) to red (positive), white at 0; returns what a colour bar is made from."""
    picture = axes.imshow(values.detach().float().cpu().numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return picture


def draw_boxes(axes: Axes, boxes: Tensor) -> None:
    """Boxes (N, 4) xyxy, each in the colour that its object has everywhere."""
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=COLORS(i % 10), linewidth=1.5)


def show_masks(image: Tensor, instances: Mapping[str, Tensor], class_names: Sequence[str] = ()) -> Figure:
    """An image with instances over it: masks in colours of their own, boxes, class names and scores.

    image (3, H, W) in [0, 1]; instances: a target or a prediction: boxes (N, 4) xyxy, labels (N,) from 1, masks
    (N, H, W), and scores (N,), each of them where it is there; class_names: of labels 1, 2, ...
    """
    figure, (axes,) = new_figure(1, 1, 5, 5 * image.shape[1] / image.shape[2] + 0.2)
    draw_instances(axes, image, instances, class_names)
    return figure


def show_panels(
    panels: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]],
    class_names: Sequence[str] = (),
    columns: int = 4,
    captions: bool = True,
) -> Figure:
    """Several pictures as `show_masks` draws them, in a grid, each under its title: {title: (image, instances)}.

    captions: of the boxes, class and score.
    """
    columns = min(columns, len(panels))
    height, width = next(iter(panels.values()))[0].shape[1:]
    figure, axes = new_figure(-(-len(panels) // columns), columns, 3, 3 * height / width + 0.3)
    for ax, (title, (image, instances)) in zip(axes, panels.items(), strict=False):
        draw_instances(ax, image, instances, class_names, fontsize=7 if captions else 0)
        ax.set_title(title, fontsize=9)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    return figure


def draw_instances(
    axes: Axes, image: Tensor, instances: Mapping[str, Tensor], class_names: Sequence[str] = (), fontsize: float = 8
) -> None:
    """What `show_masks` shows, on axes that are there; fontsize: of the boxes' captions, 0 for none.

    Instance i has colour i; `colors` (N,) among the instances names others, -1 for black.
    """
    masks = instances.get("masks", torch.zeros(0, *image.shape[1:]))
    painted = image.detach().cpu().clone()
    chosen = instances.get("colors", torch.arange(len(masks))).tolist()
    for k, mask in zip(chosen, masks.detach().cpu().bool(), strict=True):
        color = torch.tensor(COLORS(k % 10)[:3] if k >= 0 else (0, 0, 0), dtype=painted.dtype)[:, None]
        painted[:, mask] = 0.45 * painted[:, mask] + 0.55 * color
    draw_image(axes, painted)
    boxes = instances.get("boxes", torch.zeros(0, 4))
    draw_boxes(axes, boxes)
    for i, (x0, y0, *_) in enumerate(boxes.tolist() if fontsize else ()):
        style = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.75}
        side = "bottom" if y0 > 0.05 * image.shape[1] else "top"  # a caption stays within the picture
        taken = int(((boxes[:i, :2] - boxes[i, :2]).abs().amax(-1) < 0.05 * image.shape[1]).sum())  # captions here
        axes.annotate(
            _caption(instances, i, class_names),
            (x0, y0),
            xytext=(0, -1.5 * fontsize * taken),
            textcoords="offset points",
            fontsize=fontsize,
            va=side,
            bbox=style,
        )


def _caption(instances: Mapping[str, Tensor], i: int, class_names: Sequence[str]) -> str:
    label = int(instances["labels"][i]) if "labels" in instances else 0
    name = class_names[label - 1] if 0 < label <= len(class_names) else f"class {label}" if label else str(i)
    return f"{name} {float(instances['scores'][i]):.2f}" if "scores" in instances else name


def show_coordinate_maps(maps: Tensor, names: Sequence[str] = ()) -> Figure:
    """Coordinate maps (N, 2, H, W), or (2, H, W): a row for each instance, x and y, with the origin's lines.

    names: of the rows, by default "instance 0" and so on. All maps share one range of colours.
    """
    maps = maps.detach().cpu().reshape(-1, 2, *maps.shape[-2:])
    names = names or [f"instance {i}" for i in range(len(maps))]
    figure, axes = new_figure(len(maps), 2, 3, 3 * maps.shape[2] / maps.shape[3] + 0.3)
    limit = float(maps.abs().max().clamp(min=1e-6))
    for k, values in enumerate(maps.flatten(0, 1)):
        picture = draw_map(axes[k], values, f"{names[k // 2]}: {'xy'[k % 2]}", limit)
        if values.min() < 0 < values.max():
            axes[k].contour(values.numpy(), levels=[0], colors="black", linewidths=1)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    return figure


def show_outlines(image: Tensor, truth: Tensor, masks: Mapping[str, Tensor], columns: int = 4) -> Figure:
    """The outlines of masks on an image, a panel under its title for each, beside the dashed outline of the true one.

    image (3, H, W) in [0, 1]; truth (H, W) bool; masks: {title: (H, W) bool}.
    """
    columns = min(columns, len(masks))
    figure, axes = new_figure(-(-len(masks) // columns), columns, 3, 3 * image.shape[1] / image.shape[2] + 0.4)
    for ax, (title, mask) in zip(axes, masks.items(), strict=False):
        draw_image(ax, image)
        for outline, color, style in ((truth, "black", "dashed"), (mask, COLORS(1), "solid")):
            if outline.any() and not outline.all():
                values = outline.detach().cpu().float().numpy()
                ax.contour(values, levels=[0.5], colors=[color], linestyles=style, linewidths=1.8)
        ax.set_title(title, fontsize=9)
    for unused in axes[len(masks) :]:
        unused.set_axis_off()
    return figure


def show_filters(theta: Tensor, channels: Sequence[int] = (10, 8, 8, 1)) -> Figure:
    """One instance's parameters theta (P,) as its layers: a grid of weights (out, in) each, the biases beside it."""
    width = 0.34 * sum(n + 1.6 for n in channels[:-1]) + 1
    figure = Picture(figsize=(width, 3.2), facecolor="white", layout="constrained")
    draw_filters(figure, theta, channels)
    return figure


def draw_filters(figure: FigureBase, theta: Tensor, channels: Sequence[int]) -> None:
    """What `show_filters` shows, into a figure or a part of one."""
    weights, biases = split_parameters(theta.detach().cpu().reshape(1, -1), channels)
    ratios = [n for w in weights for n in (w.shape[2], 1.6)]
    axes = figure.subplots(1, len(ratios), width_ratios=ratios)
    limit = float(theta.detach().abs().max().clamp(min=1e-6))
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out, into = weight.shape[1:]
        picture = draw_map(axes[2 * i], weight[0], f"layer {i + 1}: {out} x {into}", limit)
        draw_map(axes[2 * i + 1], bias[0][:, None], "bias", limit)
        axes[2 * i].set_xlabel("inputs", fontsize=8)
        axes[2 * i].set_ylabel("outputs", fontsize=8)
    figure.suptitle(f"{theta.numel()} numbers", fontsize=10)
    figure.colorbar(picture, ax=list(axes), shrink=0.8)


def show_feature_maps(features: Tensor, columns: int = 4) -> Figure:
    """Feature maps (C, H, W), each channel in its own range."""
    count = len(features)
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, 2.2, 2.2 * features.shape[1] / features.shape[2] + 0.3)
    for c, values in enumerate(features.detach().cpu()):
        draw_map(axes[c], values, f"channel {c}", float(values.abs().max().clamp(min=1e-6)))
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure


def show_maps(maps: Mapping[str, Tensor], columns: int = 4, limit: float | None = None, width: float = 1.9) -> Figure:
    """Maps (H, W) of one size in a grid, each under its title: {title: map}; width of one in inches.

    limit: the value of the darkest red, for all; without one each map has its own range.
    """
    columns = min(columns, len(maps))
    shape = next(iter(maps.values())).shape
    figure, axes = new_figure(-(-len(maps) // columns), columns, width, width * shape[0] / shape[1] + 0.3)
    for ax, (title, values) in zip(axes, maps.items(), strict=False):
        own = float(values.detach().float().abs().max().clamp(min=1e-6))
        picture = draw_map(ax, values, title, limit or own)
    for unused in axes[len(maps) :]:
        unused.set_axis_off()
    if limit:
        bar = figure.colorbar(picture, ax=axes, shrink=0.8)
        if all(values.min() >= 0 for values in maps.values()):
            bar.ax.set_ylim(0, limit)
    return figure


def show_curves(curves: Mapping[str, Tensor], x: str, y: str, at: Sequence[float] | None = None) -> Figure:
    """Curves (N,) over 0 to N - 1, or over the N numbers `at`; each with its name; x, y: what the axes tell."""
    figure, (axes,) = new_figure(1, 1, 6, 3)
    for (name, values), style in zip(curves.items(), itertools.cycle(("-", "--", "-.", ":")), strict=False):
        axes.plot(at or range(len(values)), values.detach().cpu(), style, linewidth=2, label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(fontsize=9)
    return figure


def spotlight(image: Tensor, mask: Tensor) -> Tensor:
    """The image (3, H, W) in [0, 1], faded to white outside the mask (H, W)."""
    return torch.where(mask.bool(), image, 0.75 + 0.25 * image)


def show_levels(image: Tensor, points: Points) -> Figure:
    """The locations of every level on the image (3, H, W), a panel for each."""
    levels = points.level.unique().tolist()
    figure, axes = new_figure(1, len(levels), 3.4, 3.4 * image.shape[1] / image.shape[2] + 0.4)
    for ax, level in zip(axes, levels, strict=True):
        of_level = points.level == level
        x, y = points.xy[of_level].cpu().T
        draw_image(ax, image)
        ax.scatter(x, y, s=18, color=COLORS(level % 10), edgecolors="white", linewidths=0.4)
        ax.set_title(f"stride {int(points.stride[of_level][0])}: {len(x)} locations", fontsize=9)
    return figure


def show_targets(image: Tensor, points: Points, assignment: Any, index: int = 0, boxes: Tensor | None = None) -> Figure:
    """Which locations of image `index` of a batch answer for which object, a panel for each level.

    assignment: as `assign_targets` returns it; an object has the colour of its masks in `show_masks`, grey is nobody's.
    boxes (M, 4) xyxy: the objects', drawn on every panel.
    """
    positive, matched = assignment.labels[index].cpu() > 0, assignment.matched[index].cpu()
    figure = show_levels(0.5 + image / 2, points)  # pale, so that the dots stand out
    for ax, level in zip(figure.axes, points.level.unique().tolist(), strict=True):
        of_level = (points.level == level).cpu()
        ax.collections[0].remove()
        if boxes is not None:
            draw_boxes(ax, boxes)
        x, y = points.xy[of_level & ~positive].cpu().T
        ax.scatter(x, y, s=8, color="0.55", linewidths=0)
        x, y = points.xy[of_level & positive].cpu().T
        owners = matched[of_level & positive].tolist()
        ax.scatter(x, y, s=34, c=[COLORS(m % 10) for m in owners], edgecolors="black", linewidths=0.6, zorder=3)
        ax.set_title(f"{ax.get_title()}, {len(owners)} positive", fontsize=9)
    return figure


def show_precision_recall(precision: Tensor, recall: Tensor) -> Figure:
    """A precision-recall curve, both (N,), and the interpolated one whose mean is AP."""
    figure, (axes,) = new_figure(1, 1, 4.5, 3.6)
    best = precision.flip(0).cummax(0).values.flip(0)
    axes.plot(recall, precision, ".-", color="0.6", label="after each detection")
    start = [torch.zeros(1, dtype=recall.dtype), best[:1]]
    axes.step(torch.cat([start[0], recall]), torch.cat([start[1], best]), where="pre", label="interpolated")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.legend(loc="lower left", fontsize=9)
    return figure


def show_chosen(
    image: Tensor, points: Points, panels: Mapping[str, tuple[Tensor, Tensor]], names: Sequence[str] = ()
) -> Figure:
    """Locations on a faded image (3, H, W), a panel for each entry {title: (indices, owners)}.

    indices (S,): of the locations; owners (S,): a number that gives each its colour, such as the index of the object
    that it answers for; names: of the owners 0, 1, ..., for a legend. A marker grows with its location's stride.
    """
    figure, axes = new_figure(1, len(panels), 3.4, 3.4 * image.shape[1] / image.shape[2] + (0.7 if names else 0.4))
    for ax, (title, (indices, owners)) in zip(axes, panels.items(), strict=True):
        x, y = points.xy[indices].cpu().T
        sizes = (14 + 3 * points.stride[indices]).tolist()
        draw_image(ax, 0.5 + 0.5 * image)
        ax.scatter(x, y, s=sizes, c=[COLORS(k % 10) for k in owners.tolist()], edgecolors="black", linewidths=0.7)
        ax.set_title(f"{title}: {len(x)}", fontsize=9)
    if names:
        add_legend(figure, names)
    return figure


def add_legend(figure: Figure, names: Sequence[str]) -> None:
    """The colours of 0, 1, ... and their names, below a figure."""
    patches = [Patch(color=COLORS(k % 10), label=name) for k, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)


def show_label_maps(image: Tensor, maps: Mapping[str, Tensor], class_names: Sequence[str]) -> Figure:
    """An image (3, H, W) and maps of labels (h, w) beside it, {title: map}: 0 is white, label k has its own colour."""
    figure, axes = new_figure(1, len(maps) + 1, 2.9, 2.9 * image.shape[1] / image.shape[2] + 0.6)
    draw_image(axes[0], image)
    axes[0].set_title("image", fontsize=9)
    used: list[Any] = ["white", *(COLORS(k % 10) for k in range(len(class_names)))]
    colors = ListedColormap(used)
    for ax, (title, labels) in zip(axes[1:], maps.items(), strict=True):
        ax.imshow(labels.cpu().numpy(), cmap=colors, vmin=-0.5, vmax=len(class_names) + 0.5)
        ax.set_title(title, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    add_legend(figure, class_names)
    return figure


def show_bars(bars: Mapping[str, float], unit: str, digits: int = 1) -> Figure:
    """A horizontal bar for each entry {name: value}, the first at the top, its value written beside it."""
    figure, (axes,) = new_figure(1, 1, 6.2, 0.32 * len(bars) + 0.7)
    drawn = axes.barh(list(bars), list(bars.values()), color=COLORS(0))
    axes.bar_label(drawn, labels=[f"{value:.{digits}f}" for value in bars.values()], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.12)
    return figure


def show_blend(image: Tensor, blend: Any, title: str = "") -> Figure:
    """How an instance of a BlendMask comes about: a `Blend` of `condinst_edu.teach.blending`, on its image (3, H, W).

    Above the image with box and outline and the crops of the bases, below the logits and the bases' weights.
    """
    count = len(blend.crops)
    figure, axes = new_figure(2, count + 1, 1.9, 2.1)
    draw_image(axes[0], image)
    draw_boxes(axes[0], blend.clipped[None])
    if blend.mask.any() and not blend.mask.all():
        axes[0].contour(blend.mask.float().cpu().numpy(), levels=[0.5], colors=[COLORS(1)], linewidths=1.8)
    axes[0].set_title(title, fontsize=9)
    limit = float(blend.crops.detach().abs().max())
    for k, (crop, weights) in enumerate(zip(blend.crops, blend.weights, strict=True)):
        draw_map(axes[1 + k], crop, f"basis {k}", limit)
        picture = axes[count + 2 + k].imshow(weights.detach().cpu().numpy(), cmap="viridis", vmin=0, vmax=1)
        axes[count + 2 + k].set(xticks=[], yticks=[])
        axes[count + 2 + k].set_title(f"weight of basis {k}", fontsize=9)
    draw_map(axes[count + 1], blend.logits, "their sum: logits", limit)
    figure.colorbar(picture, ax=axes[-1], shrink=0.8)
    return figure
