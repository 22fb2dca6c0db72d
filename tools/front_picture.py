"""Draws docs/idea.png, README's picture: three objects of one image, the 169 numbers of each, and what they draw.

python tools/front_picture.py
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle
from torch import Tensor

from condinst_edu.mask_head import split_parameters
from condinst_edu.teach import look
from condinst_edu.teach.pictures import COLORS, draw_image
from condinst_edu.teach.tiny import held_out, load_tiny

OUT = Path(__file__).resolve().parent.parent / "docs" / "idea.png"
IMAGE, POINTS = 10, ((84, 84), (60, 84), (100, 12))  # two squares of one colour that touch, and one more


def main() -> None:
    """Draw and save it."""
    torch.set_num_threads(1)
    model = load_tiny("condinst").model
    image = held_out(50)[IMAGE][0] / 255
    seen = look(model, image)
    segments = [seen.segment_at(x, y) for x, y in POINTS]
    figure = Figure(figsize=(11, 4.6), facecolor="white", layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[4.4, 4.6, 4.4], squeeze=False).flat
    shown, drawn = left.subplots(), right.subplots()
    draw_image(shown, image)
    painted = image.clone()
    for k, segment in enumerate(segments):
        color = torch.tensor(COLORS(k)[:3], dtype=image.dtype)[:, None]
        painted[:, segment.mask] = 0.3 * painted[:, segment.mask] + 0.7 * color
        shown.add_patch(Circle(segment.location, 4, facecolor=COLORS(k), edgecolor="white", linewidth=2))
    draw_image(drawn, painted)
    shown.set_title("one image, one network,\nthree locations that found an object", fontsize=11)
    drawn.set_title("run on features that all share, counted\nfrom its location, each draws its object", fontsize=11)
    middle.suptitle("at each location the network writes\n169 numbers: a tiny network of its own", fontsize=11)
    for k, (part, segment) in enumerate(zip(middle.subfigures(3, 1, squeeze=False).flat, segments, strict=True)):
        part.set_facecolor((*COLORS(k)[:3], 0.35))
        draw_network(part, segment.theta)
    figure.savefig(OUT, dpi=120)


def draw_network(figure: SubFigure, theta: Tensor) -> None:
    """The weights and biases of each layer, blue to red."""
    weights, biases = split_parameters(theta[None], (10, 8, 8, 1))
    blocks = [block for w, b in zip(weights, biases, strict=True) for block in (w[0], b[0][:, None])]
    limit = float(theta.abs().quantile(0.97))
    for axes, block in zip(
        figure.subplots(1, len(blocks), width_ratios=[b.shape[1] for b in blocks]), blocks, strict=True
    ):
        axes.imshow(block, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set(xticks=[], yticks=[], anchor="C")


if __name__ == "__main__":
    main()
