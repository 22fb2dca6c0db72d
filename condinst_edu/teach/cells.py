"""SOLO's cells to look at: grids over images, the mask of one cell, all of them at once, and a widget with sliders.

`look_at_cells` runs a network once on an image; everything else answers from what it found.

Legend: S cells along a side of a grid, H, W map. Cell (i, j) is row i, column j, and k = i * S + j.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ipywidgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from condinst_edu.layers.images import Size, make_batch
from condinst_edu.solo import SOLO, Outputs
from condinst_edu.teach.pictures import COLORS, draw_image, draw_instances, draw_map, new_figure
from condinst_edu.teach.segment_pictures import figure_png
from condinst_edu.teach.widgets import WithPicture
from condinst_edu.teach.xray import evaluating


class CellMask(NamedTuple):
    """What one cell says: k, the label (from 1) and probability of its best class, its mask.

    soft (h, w): probabilities as the network draws them, padding included; mask bool, of the image's size.
    """

    k: int
    label: int
    score: float
    soft: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class CellLook:
    """A SOLO's run on one image (3, H, W); padded: (height, width) of what the network saw."""

    model: SOLO
    image: Tensor
    padded: Size
    outputs: Outputs

    def cell(self, level: int, i: int, j: int) -> CellMask:
        """The mask that cell (i, j) of a level (from 0) draws, whatever it scores.

        Errors: ValueError for a cell that is not on the level's grid.
        """
        grid = self.model.head.grids[level]
        if not (0 <= i < grid and 0 <= j < grid):
            raise ValueError(f"cell ({i}, {j}) is not on a grid of {grid} x {grid}")
        k = i * grid + j
        with torch.no_grad():
            soft = self.model.head.cell_masks(self.outputs.maps[level], 0, torch.tensor([k]))
            size = (self.image.shape[1], self.image.shape[2])
            mask = self.model.to_output_size(soft, self.padded, size, size)[0]
        score, label = self.outputs.logits[level][0, :, i, j].sigmoid().max(dim=0)
        return CellMask(k, int(label) + 1, float(score), soft[0], mask)

    def all_masks(self, level: int) -> Tensor:
        """Masks (S * S, h, w), as probabilities, of all cells of a level."""
        with torch.no_grad():
            every = torch.arange(self.model.head.grids[level] ** 2)
            return self.model.head.cell_masks(self.outputs.maps[level], 0, every)

    def surest(self) -> tuple[int, int, int]:
        """(level, i, j) of the cell with the highest class probability."""
        best = [logits[0].sigmoid().amax(dim=0) for logits in self.outputs.logits]  # (S, S)
        level = max(range(len(best)), key=lambda n: float(best[n].max()))
        i, j = divmod(int(best[level].argmax()), len(best[level]))
        return level, i, j


def look_at_cells(model: Any, image: Tensor) -> CellLook:
    """Run a SOLO on an image (3, H, W) in [0, 1]. Errors: TypeError for another model."""
    if not isinstance(model, SOLO):
        raise TypeError(f"cells are SOLO's or Decoupled SOLO's, not {type(model).__name__}'s")
    batch = make_batch([image], model.mean, model.std, model.divisor)
    padded = (batch.images.shape[2], batch.images.shape[3])
    with torch.no_grad(), evaluating(model):
        outputs = model.head(model.split(model.pyramid(batch.images), padded))
    return CellLook(model, image, padded, outputs)


# ------------------------------------------------------------------------------------------------------------- pictures


def draw_grid(axes: Axes, size: Size, grid: int, cells: Mapping[tuple[int, int], Any]) -> None:
    """Lines of a grid over an image of a size (height, width), with the frames of cells {(i, j): colour}."""
    height, width = size
    for n in range(1, grid):
        axes.axhline(n * height / grid - 0.5, color="white", linewidth=0.5, alpha=0.7)
        axes.axvline(n * width / grid - 0.5, color="white", linewidth=0.5, alpha=0.7)
    for (i, j), color in cells.items():
        x, y, w, h = j * width / grid - 0.5, i * height / grid - 0.5, width / grid, height / grid
        axes.fill([x, x + w, x + w, x], [y, y, y + h, y + h], facecolor="none", edgecolor=color, linewidth=2)


def show_grids(
    panels: Mapping[str, tuple[Tensor, Mapping[str, Tensor], int, Mapping[tuple[int, int], Any]]], columns: int = 3
) -> Figure:
    """Images with instances and a grid over each: {title: (image, instances, S, {(i, j): index of its object})}.

    A cell has the colour of its object. The images need no padding: their sides are multiples of 32.
    """
    columns = min(columns, len(panels))
    height, width = next(iter(panels.values()))[0].shape[1:]
    figure, axes = new_figure(-(-len(panels) // columns), columns, 3, 3 * height / width + 0.3)
    for ax, (title, (image, instances, grid, cells)) in zip(axes, panels.items(), strict=False):
        draw_instances(ax, image, instances, fontsize=7)
        size = (image.shape[1], image.shape[2])
        draw_grid(ax, size, grid, {cell: COLORS(owner % 10) for cell, owner in cells.items()})
        ax.set_title(title, fontsize=9)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    return figure


def show_all_cells(masks: Mapping[str, Tensor], step: int = 1) -> Figure:
    """All masks (S * S, h, w) of a grid in the places of their cells: {title: masks}; step: thins each of them out."""
    figure, axes = new_figure(1, len(masks), 4.2, 4.4)
    for ax, (title, values) in zip(axes, masks.items(), strict=True):
        grid = round(len(values) ** 0.5)
        small = values[:, ::step, ::step].unflatten(0, (grid, grid))  # (S, S, h, w)
        height, width = small.shape[2:]
        ax.imshow(small.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).numpy(), cmap="magma", vmin=0, vmax=1)
        for n in range(1, grid):
            ax.axhline(n * height - 0.5, color="white", linewidth=0.4)
            ax.axvline(n * width - 0.5, color="white", linewidth=0.4)
        ax.set_title(title, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def show_cell(seen: CellLook, level: int, i: int, j: int, class_names: Sequence[str] = ()) -> Figure:
    """Where cell (i, j) of a level lies, the probabilities that it draws, and its mask on the image."""
    found, image = seen.cell(level, i, j), seen.image
    figure, axes = new_figure(1, 3, 3, 3 * image.shape[1] / image.shape[2] + 0.3)
    grid = seen.model.head.grids[level]
    draw_image(axes[0], image)
    draw_grid(axes[0], seen.padded, grid, {(i, j): COLORS(1)})
    axes[0].set_title(f"grid {grid} x {grid}, cell ({i}, {j})", fontsize=9)
    draw_map(axes[1], found.soft, f"channel {found.k}", 1)
    draw_instances(axes[2], image, {"masks": found.mask[None]})
    axes[2].set_title(describe_cell(found, class_names), fontsize=9)
    return figure


def describe_cell(found: CellMask, class_names: Sequence[str] = ()) -> str:
    """The cell's best class and its probability, in words."""
    name = class_names[found.label - 1] if found.label <= len(class_names) else f"class {found.label}"
    return f"{name} {found.score:.2f}, {int(found.mask.sum())} pixels"


# --------------------------------------------------------------------------------------------------------------- widget


class ExploreCells(WithPicture, ipywidgets.VBox):
    """Sliders over `show_cell`: the level, row i and column j."""

    def __init__(self, seen: CellLook, level: int, i: int, j: int, class_names: Sequence[str]) -> None:
        self.seen, self.class_names = seen, class_names
        grids = seen.model.head.grids
        options = [(f"{n}: {grid} x {grid} cells", n) for n, grid in enumerate(grids)]
        self.level = ipywidgets.Dropdown(options=options, value=level, description="level")
        self.row = ipywidgets.IntSlider(i, min=0, max=grids[level] - 1, description="row i")
        self.column = ipywidgets.IntSlider(j, min=0, max=grids[level] - 1, description="column j")
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.line = ipywidgets.HTML()
        self._update()
        super().__init__([self.level, self.row, self.column, self.line, self.picture])
        self.level.observe(self._new_grid, names="value")
        for control in (self.level, self.row, self.column):
            control.observe(self._update, names="value")

    @property
    def chosen(self) -> tuple[int, int, int]:
        """(level, i, j); a slider may still be where a larger grid had it."""
        last = self.seen.model.head.grids[self.level.value] - 1
        return self.level.value, min(self.row.value, last), min(self.column.value, last)

    def figure(self) -> Figure:
        """The figure of `show_cell` for what is chosen."""
        return show_cell(self.seen, *self.chosen, self.class_names)

    @property
    def text(self) -> str:  # type: ignore[override]
        """What the chosen cell says."""
        found = self.seen.cell(*self.chosen)
        return f"k = {found.k}: {describe_cell(found, self.class_names)}"

    def _new_grid(self, _: Any = None) -> None:
        for slider in (self.row, self.column):
            slider.max = self.seen.model.head.grids[self.level.value] - 1  # clips the value too

    def _update(self, _: Any = None) -> None:
        self.picture.value = figure_png(self.figure())
        self.line.value = f'<p role="status">{self.text}</p>'


def explore_cells(model: Any, image: Tensor, class_names: Sequence[str] = ()) -> ExploreCells:
    """A widget on an image (3, H, W) in [0, 1]: sliders choose a cell, pictures show the mask that it draws.

    It begins with the surest cell. The plain functions are `look_at_cells` and `show_cell`.
    Errors: TypeError for a model that is no SOLO.
    """
    seen = look_at_cells(model, image)
    return ExploreCells(seen, *seen.surest(), class_names)
