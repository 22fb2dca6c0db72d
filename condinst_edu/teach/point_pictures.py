"""Pictures of AdaptIS at work: the heat maps of several points, the greedy algorithm step by step.

Legend: N points or instances, k points tried at a time, H, W image.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from condinst_edu.adaptis_greedy import Aggregate
from condinst_edu.teach.pictures import COLORS, draw_image, new_figure

GREEN = "#7dff5a"  # proposals, as in the paper's figure 5


def show_heat_maps(image: Tensor, points: Tensor, probabilities: Tensor, columns: int = 4) -> Figure:
    """The image (3, H, W) with N points (N, 2), then the heat map (N, H, W) of each, with its point.

    Black is probability 0, white 1.
    """
    count = len(points) + 1
    columns = min(columns, count)
    aspect = image.shape[1] / image.shape[2]
    figure, axes = new_figure(-(-count // columns), columns, 2.4, 2.4 * aspect + 0.25)
    draw_image(axes[0], image)
    axes[0].set_title("image", fontsize=9)
    for i, (ax, (x, y)) in enumerate(zip(axes[1:], points.tolist(), strict=False)):
        axes[0].plot(x, y, "o", color=COLORS(i % 10), markeredgecolor="black", markersize=6)
        ax.imshow(probabilities[i].cpu().numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        ax.plot(x, y, "o", color=COLORS(i % 10), markeredgecolor="white", markersize=6)
        ax.set_title(f"({x:.0f}, {y:.0f})", fontsize=9)
    for ax in axes[1:]:
        ax.set_axis_off()
    return figure


def show_steps(image: Tensor, found: Aggregate, steps: Sequence[int], segmented: Tensor, columns: int = 4) -> Figure:
    """The greedy algorithm as the paper's figure 5: the map S after some of its steps, and the end.

    image (3, H, W); steps: numbers of iterations from 1 on; segmented (H, W) bool: S at the beginning, shown white.
    Unknown pixels are grey, each object has its colour, points tried are green, the best of them larger.
    """
    panels = len(steps) + 2
    aspect = image.shape[1] / image.shape[2]
    figure, axes = new_figure(-(-panels // columns), columns, 2.4, 2.4 * aspect + 0.25)
    draw_image(axes[0], image)
    axes[0].set_title("image", fontsize=9)
    painted = torch.full_like(image, 0.6)
    painted[:, segmented] = 1.0
    shown, kept = iter(axes[1:]), 0
    for number, step in enumerate(found.steps, start=1):
        if step.kept:
            color = torch.tensor(COLORS(kept % 10)[:3], dtype=image.dtype)[:, None]
            painted[:, step.mask] = color
            kept += 1
        if number in steps:
            ax = next(shown)
            draw_image(ax, painted)
            for i, (x, y) in enumerate(step.points.tolist()):
                size = 8 if i == step.best else 4
                ax.plot(x, y, "o", color=GREEN, markeredgecolor="black", markersize=size)
            ax.set_title(f"step {number}: {'kept' if step.kept else 'ignored'}", fontsize=9)
    end = torch.ones_like(image)
    for i, mask in enumerate(found.masks):
        end[:, mask] = torch.tensor(COLORS(i % 10)[:3], dtype=image.dtype)[:, None]
    ax = next(shown)
    draw_image(ax, end)
    ax.set_title(f"the end: {len(found.points)} objects", fontsize=9)
    for unused in shown:
        unused.set_axis_off()
    return figure
