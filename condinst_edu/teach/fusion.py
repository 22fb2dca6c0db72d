"""Lesson 9's pictures of segments, and the thresholds of the fusion as a plain function and as sliders.

Legend: N instances, S classes of stuff, H, W image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.layers.upsample import resize_logits
from condinst_edu.panoptic import Panoptic, PanopticModel, Scores, fuse, panoptic_quality, stuff_segments
from condinst_edu.teach.pictures import COLORS, draw_image, new_figure
from condinst_edu.teach.segment_pictures import figure_png
from condinst_edu.teach.widgets import WithPicture


def show_panoptic(
    panels: Mapping[str, tuple[Tensor, Panoptic]], class_names: Sequence[str], columns: int = 4
) -> Figure:
    """Images (3, H, W) in [0, 1] with their segments, {title: (image, result)}: stuff is pale, void is dark grey.

    A thing has a colour of its own and its score beside its name; category ids are labels of class_names, from 1.
    """
    columns = min(columns, len(panels))
    height, width = next(iter(panels.values()))[0].shape[1:]
    figure, axes = new_figure(-(-len(panels) // columns), columns, 3, 3 * height / width + 0.3)
    for ax, (title, (image, result)) in zip(axes, panels.items(), strict=False):
        draw_segments(ax, image, result, class_names)
        ax.set_title(title, fontsize=9)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    return figure


def draw_segments(axes: Any, image: Tensor, result: Panoptic, class_names: Sequence[str]) -> None:
    """What `show_panoptic` shows, on axes that are there."""
    painted, ids = image.clone(), result["panoptic"]
    painted[:, ids == 0] = 0.5 * image.mean(dim=0)[ids == 0]  # an object that is left out must not look like a segment
    for k, row in enumerate(result["segments_info"]):
        mask, thing = ids == row["id"], row.get("isthing", row.get("score") is not None)
        color = torch.tensor(COLORS((k if thing else 7 - row["category_id"]) % 10)[:3], dtype=painted.dtype)[:, None]
        share = 0.65 if thing else 0.25
        painted[:, mask] = (1 - share) * painted[:, mask] + share * color
    draw_image(axes, painted)
    for row in result["segments_info"]:
        y, x = (ids == row["id"]).nonzero(as_tuple=True)
        i = (y - y.median()).abs().add((x - x.median()).abs()).argmin()  # a pixel of its own
        score = "" if row.get("score") is None else f" {row['score']:.2f}"
        style = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.7}
        text = f"{class_names[row['category_id'] - 1]}{score}"
        axes.text(int(x[i]), int(y[i]), text, fontsize=7, ha="center", va="center", bbox=style)


class Found(NamedTuple):
    """What a model found in some images, before the fusion: images (3, H, W), things and stuff of each, the truth."""

    images: list[Tensor]
    things: list[dict[str, Tensor]]
    stuff: list[dict[str, Tensor]]
    truth: list[Panoptic]
    isthing: Mapping[int, bool]
    class_names: list[str]


@torch.no_grad()
def look_at(model: PanopticModel, dataset: PanopticDataset, count: int) -> Found:
    """Run a PanopticModel on the first images of a set, once; the fusion is then repeated as often as asked."""
    kept: list[tuple[Any, Any]] = []
    images = [dataset.image(i) / 255 for i in range(count)]
    for image in images:
        (result,) = model.instances([image])
        size = (image.shape[1], image.shape[2])
        logits = resize_logits(model.logits()[0], model.stride, size, size, model.branch.aligned)
        kept.append((result, stuff_segments(logits.argmax(dim=0), model.num_things)))
    truth = [named_truth(dataset, i) for i in range(count)]
    isthing = {k: k <= dataset.num_things for k in range(1, len(dataset.category_ids) + 1)}
    return Found(
        images, [things for things, _ in kept], [stuff for _, stuff in kept], truth, isthing, dataset.class_names
    )


def named_truth(dataset: PanopticDataset, index: int) -> Panoptic:
    """The truth of an image with labels for category ids."""
    truth = dataset.files[dataset.image_ids[index]]
    labels = {category: k for k, category in enumerate(dataset.category_ids, start=1)}
    rows = [{**s, "category_id": labels[s["category_id"]]} for s in truth["segments_info"]]
    return {**truth, "segments_info": rows}


def fuse_all(found: Found, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 200) -> list[Panoptic]:
    """Each image's map of segments, with these thresholds of `fuse`."""
    pairs = zip(found.things, found.stuff, strict=True)
    return [fuse(things, stuff, min_score, max_lost, min_stuff) for things, stuff in pairs]


def quality_at(found: Found, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 200) -> Scores:
    """Panoptic quality of the images with these thresholds: what `explore_fusion` shows."""
    return panoptic_quality(found.truth, fuse_all(found, min_score, max_lost, min_stuff), found.isthing)


class ExploreFusion(WithPicture, ipywidgets.VBox):
    """Sliders over `quality_at`: least score, largest share lost, least area of stuff; scores: what it returned."""

    scores: Scores

    def __init__(self, found: Found, shown: int) -> None:
        self.found, self.shown = found, shown
        style, wide = {"description_width": "14em"}, ipywidgets.Layout(width="34em")
        common: dict[str, Any] = {"style": style, "layout": wide}
        self.min_score = ipywidgets.FloatSlider(0.45, min=0, max=1, step=0.05, description="least score", **common)
        self.max_lost = ipywidgets.FloatSlider(0.4, min=0, max=1, step=0.1, description="share to lose", **common)
        self.min_stuff = ipywidgets.IntSlider(
            200, min=0, max=2000, step=50, description="least stuff (pixels)", **common
        )
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%"))
        self.line = ipywidgets.HTML()
        self._update()
        controls = [self.min_score, self.max_lost, self.min_stuff]
        together = ipywidgets.VBox(controls)
        together.add_class("controls")
        super().__init__([together, self.line, self.picture])
        for control in controls:
            control.observe(self._update, names="value")

    @property
    def values(self) -> tuple[float, float, int]:
        """What the sliders say, in the order of `fuse`'s arguments."""
        return self.min_score.value, self.max_lost.value, self.min_stuff.value

    @property
    def text(self) -> str:  # type: ignore[override]
        """The three qualities at what is chosen."""
        parts = [f"{name} {100 * self.scores[name]['pq']:.1f}" for name in ("All", "Things", "Stuff")]
        return f"PQ of {len(self.found.images)} images in percent: {', '.join(parts)}"

    def figure(self) -> Figure:
        """The truth and the fusion of the first images."""
        results = fuse_all(self.found, *self.values)[: self.shown]
        panels = {f"truth {k + 1}": (self.found.images[k], self.found.truth[k]) for k in range(self.shown)}
        panels |= {f"fused {k + 1}": (self.found.images[k], result) for k, result in enumerate(results)}
        return show_panoptic(panels, self.found.class_names, columns=self.shown)

    def _update(self, _: Any = None) -> None:
        self.scores = quality_at(self.found, *self.values)
        self.picture.value = figure_png(self.figure(), dpi=120)
        self.line.value = f'<p role="status">{self.text}</p>'


def explore_fusion(found: Found, shown: int = 3) -> ExploreFusion:
    """A widget on what `look_at` found: the three thresholds of the fusion, the segments and PQ as they move."""
    return ExploreFusion(found, shown)
