"""The comparison that students ask for: CondInst, Mask R-CNN, SOLO and AdaptIS on one crowded image of shapes.

The models are the shipped ones (`condinst-edu weights`): about as large, trained on the same data. One image is an
illustration; what counts is the AP on all held-out images, which is on their cards.

Legend: N detections, M objects, H, W image.
"""

import math
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.ops import box_iou

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.files import whole_file
from condinst_edu.teach.pictures import show_panels
from condinst_edu.teach.scoring import mask_iou, match_objects
from condinst_edu.teach.tiny import ROOT, TINY, broken, held_out, load_tiny, read_card

MODELS = {  # how each of them tells one object from another
    "condinst": ("CondInst", "filters and an origin for each object"),
    "mask-rcnn": ("Mask R-CNN", "features cut out at the box"),
    "solo": ("SOLO", "a channel for each cell of a grid"),
    "panoptic-adaptis": ("AdaptIS", "a point, whose features steer the head"),
}
START, END = "<!-- table: made by python -m condinst_edu.teach.side_by_side -->", "<!-- end -->"


class Comparison(NamedTuple):
    """What a model makes of one image: masks (N, H, W) of its surest detections, and how they fit the truth.

    N is the number of objects, M, or less: scores of different models mean different things, so no threshold is fair.
    owners: for each mask, the object that it covers with an IoU above one half, -1 for none; drawn: how many objects
    that are; found: with their class; iou: mean of those found, NaN for none; milliseconds: for the image; ap: mask AP
    on the held-out images, from the model's card.
    """

    masks: Tensor
    owners: list[int]
    drawn: int
    found: int
    iou: float
    milliseconds: float
    ap: float


def crowded(images: CocoDataset) -> int:
    """Index of the image with the most objects whose box overlaps another's by an IoU above 0.2."""
    counts = []
    for i in range(len(images)):
        boxes = images.target(i)["boxes"]
        overlap = box_iou(boxes, boxes).fill_diagonal_(0)
        counts.append(int((overlap > 0.2).any(dim=1).sum()) if len(boxes) else 0)
    return counts.index(max(counts))


def compare_models(
    image: Tensor, target: Mapping[str, Tensor], names: Sequence[str] = tuple(MODELS)
) -> dict[str, Comparison]:
    """Run shipped models on an image (3, H, W) in [0, 1] with its target; {title: what came out}.

    A model that is not there is left out. Errors: UserError where none is.
    """
    there = [name for name in names if name in TINY and broken(name) is None]
    compared = {}
    for name in there or names[:1]:
        ap = read_card(name)["metrics"].get("mask", {}).get("AP", float("nan"))
        compared[MODELS[name][0]] = compare(load_tiny(name).model, image, target, ap)
    return compared


@torch.no_grad()
def compare(model: nn.Module, image: Tensor, target: Mapping[str, Tensor], ap: float) -> Comparison:
    """One of them: see `compare_models`."""
    model([image])  # the first run of a model is slower
    begin = perf_counter()
    (result,) = model([image])
    milliseconds = 1000 * (perf_counter() - begin)
    surest = result["scores"].argsort(descending=True)[: len(target["masks"])]
    masks, labels = result["masks"][surest], result["labels"][surest]
    hits = [iou for m, iou in matched(masks, labels, target) if m >= 0]
    alike = {"masks": target["masks"], "labels": torch.zeros_like(target["labels"])}
    owners = [m for m, _ in matched(masks, torch.zeros_like(labels), alike)]
    drawn = sum(m >= 0 for m in owners)
    return Comparison(masks, owners, drawn, len(hits), sum(hits) / len(hits) if hits else math.nan, milliseconds, ap)


def matched(masks: Tensor, labels: Tensor, target: Mapping[str, Tensor]) -> list[tuple[int, float]]:
    """For detections by falling score, masks (N, H, W): the object that each takes and the IoU, -1 and 0 for none.

    An object is taken once, by the first detection of its class with an IoU above one half.
    """
    none = torch.zeros(len(target["masks"]), dtype=torch.bool)
    iou = mask_iou(masks, target["masks"], none) * (labels[:, None] == target["labels"])  # (N, M)
    owners = match_objects(iou, none, none, math.nextafter(0.5, 1)).tolist()
    return [(m, float(iou[n, m]) if m >= 0 else 0.0) for n, m in enumerate(owners)]


def show_comparison(image: Tensor, target: Mapping[str, Tensor], compared: Mapping[str, Comparison]) -> Figure:
    """The image, the truth, and each model's masks, with the number that fits in the titles.

    A mask has the colour of the object that it covers; one that covers none is black.
    """
    objects = len(target["masks"])
    panels = {"the image": (image, {}), f"truth: {objects} objects": (image, {"masks": target["masks"]})}
    for title, one in compared.items():
        panels[f"{title}: {one.drawn} drawn, {one.found} with class"] = (
            image,
            {"masks": one.masks, "colors": torch.tensor(one.owners, dtype=torch.long)},
        )
    figure = show_panels(panels, columns=3)
    for ax in figure.axes:
        ax.title.set_fontsize(11)  # also for a projector
    return figure


def table_of(objects: int, compared: Mapping[str, Comparison]) -> list[list[str]]:
    """Heads and rows: model, what tells objects apart in it, objects drawn, with the right class, IoU, time, AP."""
    ways = dict(MODELS.values())
    rows = [["model", "tells objects apart by", "drawn", "with its class", "IoU", "ms", "AP, all images"]]
    for title, one in compared.items():
        figures = (
            f"{one.drawn} of {objects}",
            f"{one.found} of {objects}",
            f"{one.iou:.2f}" if one.found else "-",
            f"{one.milliseconds:.0f}",
            f"{one.ap:.3f}",
        )
        rows.append([title, ways[title], *figures])
    return rows


def main() -> None:
    """Write docs/comparison.png and the table in docs/comparison.md: `python -m condinst_edu.teach.side_by_side`."""
    torch.set_num_threads(1)
    images = held_out(50)
    index = crowded(images)
    image, target = images[index][0] / 255, images.target(index)
    compared = compare_models(image, target)
    docs = ROOT / "docs"
    with whole_file(docs / "comparison.png") as temporary:
        show_comparison(image, target, compared).savefig(temporary, format="png", dpi=100)
    table = [[*row[:5], row[6]] for row in table_of(len(target["masks"]), compared)]  # times are this machine's
    table.insert(1, ["---"] * 6)
    made = "\n".join(f"| {' | '.join(row)} |" for row in table)
    if missing := [title for title, _ in MODELS.values() if title not in compared]:
        made += f"\n\nNo model of these data is shipped yet for {' and '.join(missing)}."
    text = (docs / "comparison.md").read_text()
    before, _, rest = text.partition(START)
    with whole_file(docs / "comparison.md") as temporary:
        temporary.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
