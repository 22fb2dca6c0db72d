"""The demos of `make play`, pages that fill the screen: click to segment, thresholds of the fusion, a comparison.

A notebook of lessons/play holds one call of a function of this module; Voila shows what it returns and no code.
"""

from collections.abc import Callable

import ipywidgets
import torch
from torch import Tensor

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.teach.fusion import ExploreFusion, look_at
from condinst_edu.teach.segment_pictures import figure_png
from condinst_edu.teach.side_by_side import compare_models, crowded, show_comparison, table_of
from condinst_edu.teach.tiny import Trained, held_out, held_out_of, held_out_panoptic, load_tiny
from condinst_edu.teach.widgets import ClickToSegment

PAGES = {  # notebook: what it is called
    "condinst": "CondInst",
    "adaptis": "AdaptIS",
    "thresholds": "Panoptic fusion",
    "compare": "Side by side",
}

# Sizes follow the screen's: what is on a projector is to be read from the last row.
STYLE = """<style>
.play { --text: clamp(16px, 1.25vw, 32px); --jp-widgets-font-size: var(--text);
  max-width: 1900px; margin: 0 auto; padding: 8px 16px; font-size: var(--text);
  --jp-widgets-inline-height: calc(1.6 * var(--text)); --jp-widgets-inline-width: calc(22 * var(--text));
  --jp-widgets-inline-label-width: calc(5 * var(--text)); --jp-widgets-inline-width-short: calc(5 * var(--text)); }
.play nav { display: flex; flex-wrap: wrap; gap: 4px 1.2em; align-items: baseline; font: var(--text) sans-serif; }
.play nav strong { font-size: 1.3em; }
.play .what { font: var(--text)/1.4 sans-serif; margin: 2px 0 0; }
.play .click-to-segment { font-size: var(--text); gap: 8px 1.5em; }
.play .click-to-segment > div:first-child { width: min(calc(100vh - 60px - 10.5 * var(--text)), 60vw);
  min-width: min(360px, 100%); }
.play .click-to-segment canvas { width: 100%; image-rendering: pixelated; }
.play .click-to-segment .hint { font-size: 0.8em; }
.play .click-to-segment figure img { zoom: 1.5; image-rendering: pixelated; }
.play .click-to-segment .panels { max-height: calc(100vh - 40px - 7 * var(--text)); overflow-y: auto; }
.play .widget-html-content p { font-size: var(--text); line-height: 1.4; white-space: normal; }
.play .widget-image { width: min(100%, calc((100vh - 80px - 8 * var(--text)) * 1.4)); object-fit: contain; }
.play td { padding: 1px 1em 1px 0; font-size: var(--text); line-height: 1.35; }
.play .below-table > .widget-image { width: min(100%, calc((100vh - 80px - 13 * var(--text)) * 1.36)); }
.play .controls { flex-flow: row wrap; gap: 0 1.5em; overflow: visible; }
.play .controls > * { width: calc(33% - 1.5em) !important; min-width: min(20em, 100%); }  /* else for a notebook */
.play .controls .widget-label { width: auto !important; }
@media (max-width: 700px) {
  .play .click-to-segment > div:first-child, .play .widget-image, .play .below-table > .widget-image { width: 100%; }
  .play .controls > * { width: 100% !important; }
  .play td { padding-right: 0.5em; font-size: 14px; }
  .play td:nth-child(2) { display: none; }  /* in words what tells objects apart: no room */
}
</style>"""


def click_page(name: str) -> ipywidgets.VBox:
    """Click to segment with the shipped model "condinst" or "adaptis", and a slider over images it has not seen."""
    trained = load_tiny(name)
    images = held_out(30) if name == "condinst" else held_out_of(name, 30)
    what = {
        "condinst": "Click on an object: the location there writes 169 numbers, a tiny network that draws the object.",
        "adaptis": "Click on a cell: the point's features steer one network, which draws the cell that it is on.",
    }[name]
    return page(name, what, len(images), 10, lambda k: click_on(trained, images[k][0] / 255))


def click_on(trained: Trained, image: Tensor) -> ClickToSegment:
    return ClickToSegment(trained.model, image, None, None, trained.class_names)


def threshold_page() -> ipywidgets.VBox:
    """The three thresholds of the panoptic fusion as sliders: segments of three images, quality over twenty."""
    found = look_at(load_tiny("panoptic-condinst").model, held_out_panoptic(50), 20)  # type: ignore[arg-type]
    what = "Move a threshold: which segments go, and what does it do to panoptic quality?"
    return page("thresholds", what, 1, 0, lambda _: ExploreFusion(found, 3))


def compare_page() -> ipywidgets.VBox:
    """CondInst, Mask R-CNN, SOLO and AdaptIS on held-out images, the most crowded one first."""
    images = held_out(50)
    what = "The surest masks of each model, as many as there are objects. Which objects does each confuse, and why?"
    return page("compare", what, len(images), crowded(images), lambda k: comparison_of(images, k))


def comparison_of(images: CocoDataset, index: int) -> ipywidgets.VBox:
    image, target = images[index][0] / 255, images.target(index)
    compared = compare_models(image, target)
    rows = table_of(len(target["masks"]), compared)
    cells = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    picture = ipywidgets.Image(value=figure_png(show_comparison(image, target, compared), dpi=130), format="png")
    whole = ipywidgets.VBox([ipywidgets.HTML(f'<table role="status">{cells}</table>'), picture])
    whole.add_class("below-table")
    return whole


def page(name: str, what: str, count: int, first: int, widget: Callable[[int], ipywidgets.Widget]) -> ipywidgets.VBox:
    """A page of `PAGES`: links to the others, one line on what to do, and a widget, made anew for each image.

    count: of images; first: index of the one to begin with; images are counted from 1 on the screen.
    """
    torch.set_num_threads(1)  # small maps: threads that wait for each other cost more than they save
    links = [f"<strong>{t}</strong>" if n == name else f'<a href="{n}.ipynb">{t}</a>' for n, t in PAGES.items()]
    head = ipywidgets.HTML(f'{STYLE}<nav>{" ".join(links)}</nav><p class="what">{what}</p>')
    place = ipywidgets.VBox([widget(first)])
    parts = [head, place]
    if count > 1:
        chosen = ipywidgets.IntSlider(first + 1, min=1, max=count, description="image", continuous_update=False)
        chosen.observe(lambda change: setattr(place, "children", [widget(change["new"] - 1)]), names="value")
        parts.insert(1, chosen)
    whole = ipywidgets.VBox(parts)
    whole.add_class("play")
    return whole
