"""Panoptic segmentation: a class for every pixel, and for a pixel of a thing the one thing that it belongs to.

Order of the data: a pyramid -> the semantic branch's logits for stuff -> (training) cross-entropy; (inference) masks of
stuff -> fusion with an instance model's masks, one segment at a time -> panoptic quality. CondInst, section 2.5; what
the paper leaves to others is as in panopticapi (quality) and detectron2 (fusion), unless said.
No model is imported here: `PanopticModel` takes one.

Legend: B images, N instances, M segments, K classes of things, S classes of stuff, H, W image, h, w map. Labels count
things first: 1..K, then stuff: K + 1..K + S. Segment id 0 is void: a pixel that belongs to nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condinst_edu.errors import UserError
from condinst_edu.layers.images import Size
from condinst_edu.layers.losses import normaliser
from condinst_edu.layers.upsample import aligned_upsample, resize_logits

Target = Mapping[str, Any]
Panoptic = dict[str, Any]  # "panoptic" (H, W) int64 segment ids and "segments_info", a list of dicts
Scores = dict[str, Any]


class SemanticBranch(nn.Module):
    """Logits for stuff from the pyramid's finest levels: class 0 is "some thing", classes 1..S are stuff.

    in_channels: of the pyramid; num_stuff: S; num_levels: from the finest on (4: P2..P5).
    form: "concat", as CondInst's text has it: levels upsampled to the finest, concatenated, one 1x1 convolution;
    "sum", Panoptic-FPN's own: each level goes through 3x3 convolutions of `channels` with group norm, one and a
    doubling for each step up to the finest level (the finest has one convolution), and the levels are added.
    `aligned` tells how its upsampling lies: "concat" as the masks of CondInst, "sum" with half-pixel centres.
    forward: the pyramid -> (B, S + 1, h, w) at the finest level's stride. One class for all things is Panoptic-FPN's.
    Source: condinst:panoptic-branch.
    """

    def __init__(
        self,
        in_channels: int,
        num_stuff: int,
        num_levels: int = 4,
        form: Literal["concat", "sum"] = "concat",
        channels: int = 128,
    ) -> None:
        super().__init__()
        if form not in ("concat", "sum"):
            raise ValueError(f"form must be 'concat' or 'sum', not {form!r}")
        if num_stuff < 1 or num_levels < 1:
            raise ValueError(f"a semantic branch has a class and a level or more, not {num_stuff} and {num_levels}")
        self.num_levels, self.aligned = num_levels, form == "concat"
        self.scales = nn.ModuleList()
        if not self.aligned:
            self.scales.extend(climb(in_channels, channels, level) for level in range(num_levels))
        self.logits = nn.Conv2d(num_levels * in_channels if self.aligned else channels, num_stuff + 1, 1)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        if len(pyramid) < self.num_levels:
            raise ValueError(f"the semantic branch takes {self.num_levels} levels, and the pyramid has {len(pyramid)}")
        levels = pyramid[: self.num_levels]
        if self.aligned:
            return self.logits(torch.cat([aligned_upsample(x, 2**i) for i, x in enumerate(levels)], dim=1))
        return self.logits(sum(scale(x) for scale, x in zip(self.scales, levels, strict=True)))


def climb(in_channels: int, channels: int, steps: int) -> nn.Sequential:
    """Panoptic-FPN's way from a level up to one `steps` finer: a convolution and a doubling for each."""
    layers: list[nn.Module] = []
    for width in (in_channels, *[channels] * (steps - 1)):
        conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        layers.append(nn.Sequential(conv, nn.GroupNorm(gcd(32, channels), channels), nn.ReLU(inplace=True)))
        if steps:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------------------------------ training


def split_target(target: Target, num_things: int) -> tuple[dict[str, Tensor], Tensor]:
    """What an instance model learns from a panoptic target, and the map of stuff that the semantic branch learns.

    target: masks (M, h, w) bool of all segments, disjoint, with boxes, labels and, where sampled, centers.
    Returns the target of the things alone, and (h, w) int64: 0 thing, 1..S stuff, -1 void (and crowds, which the
    target leaves out). No pixel belongs to two instances, as section 3.9 asks. Source: condinst:panoptic-branch.
    """
    labels, masks = target["labels"], target["masks"]
    thing = labels <= num_things
    fields = (name for name in ("boxes", "labels", "masks", "centers") if name in target)
    things = {name: target[name][thing] for name in fields}
    if not len(masks):
        return things, torch.full(masks.shape[1:], -1, dtype=torch.int64, device=masks.device)
    stuff = (labels - num_things).clamp(min=0)[masks.byte().argmax(dim=0)]
    return things, stuff.masked_fill(~masks.any(dim=0), -1)


def stuff_loss(logits: Tensor, stuff: Tensor) -> Tensor:
    """Mean cross-entropy of the cells that are not void; 0, with gradients, where all are.

    logits (B, S + 1, h, w); stuff (B, h, w) int64 as of `split_target`. Source: condinst:panoptic-branch.
    """
    total = F.cross_entropy(logits.float(), stuff, ignore_index=-1, reduction="sum")
    return total / normaliser((stuff >= 0).sum().float())


# ----------------------------------------------------------------------------------------------------------- inference


def stuff_segments(classes: Tensor, num_things: int) -> dict[str, Tensor]:
    """The regions of stuff in a map of classes (H, W) int64 from 0: masks (S', H, W) bool and labels (S',), rising."""
    present = classes.unique()
    present = present[present > 0]
    return {"masks": classes == present[:, None, None], "labels": present + num_things}


def fuse(
    things: Target, stuff: Target, min_score: float = 0.45, max_lost: float = 0.4, min_stuff: int = 64 * 64
) -> Panoptic:
    """One map out of overlapping instances and regions of stuff.

    things: masks (N, H, W) bool, labels (N,), scores (N,), in any order; stuff: masks (S', H, W) bool, labels (S',).
    min_score: instances below it are out; max_lost: so is one that loses more than this share of its area to those of
    higher score (it then takes nothing from those that follow); min_stuff: least area of stuff, in pixels of what
    things and earlier stuff left (panopticapi's rule; the paper has none). Of equal scores the first goes first.
    Returns panoptic (H, W) int64, ids from 1 in the order of the fusion, and segments_info: id, category_id (the
    label), isthing, score (None for stuff), area. Stuff given twice is one segment. Source: condinst:panoptic-fusion.
    """
    masks, scores = things["masks"], things["scores"]
    panoptic = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)
    segments: list[dict[str, Any]] = []

    def add(free: Tensor, area: int, label: int, isthing: int, score: float | None) -> None:
        panoptic[free] = len(segments) + 1
        row = {"id": len(segments) + 1, "category_id": label, "isthing": isthing, "score": score, "area": area}
        segments.append(row)

    order = scores.argsort(descending=True, stable=True)
    for i in order[scores[order] >= min_score].tolist():
        free = masks[i] & (panoptic == 0)
        area, left = int(masks[i].sum()), int(free.sum())
        if left and (area - left) / area <= max_lost:
            add(free, left, int(things["labels"][i]), 1, float(scores[i]))
    placed: dict[int, dict[str, Any]] = {}  # by label
    for mask, label in zip(stuff["masks"], stuff["labels"].tolist(), strict=True):
        free = mask & (panoptic == 0)
        area = int(free.sum())
        if not area or area < min_stuff:
            continue
        if label in placed:
            panoptic[free] = placed[label]["id"]
            placed[label]["area"] += area
        else:
            add(free, area, label, 0, None)
            placed[label] = segments[-1]
    return {"panoptic": panoptic, "segments_info": segments}


# --------------------------------------------------------------------------------------------------------------- model


class PanopticModel(nn.Module):
    """Any instance model with a pyramid, a semantic branch on that pyramid, and the fusion of both.

    instances: a model of the house's interface that draws masks; its pyramid is what its part `pyramid` returns, and is
    picked up there on the way, so that it is computed once and the model stays as it is. num_things: K; stride: of the
    branch's logits, in pixels; loss_stride: of the map that it learns, a divisor of that (None: the instances' mask
    stride; 1: the image's pixels, as in Panoptic-FPN, from full-size masks); weight: of its loss; others: see `fuse`.

    forward(images, targets) in training -> the instance model's losses and "loss_stuff"; targets hold all segments,
    see `split_target`. forward(images, output_sizes=None) in evaluation -> the instance model's results, each with
    "panoptic" and "segments_info" as of `fuse`. Source: condinst:panoptic-branch, condinst:panoptic-fusion.
    """

    def __init__(
        self,
        instances: nn.Module,
        branch: SemanticBranch,
        num_things: int,
        pyramid: str = "fcos.fpn",
        stride: int = 4,
        loss_stride: int | None = None,
        weight: float = 0.5,
        min_score: float = 0.45,
        max_lost: float = 0.4,
        min_stuff: int = 64 * 64,
    ) -> None:
        super().__init__()
        self.instances, self.branch = instances, branch
        self.num_things, self.stride, self.weight = num_things, stride, weight
        self.min_score, self.max_lost, self.min_stuff = min_score, max_lost, min_stuff
        drawn: int | None = getattr(instances, "mask_stride", None)
        self.loss_stride = loss_stride or drawn or 1
        self.mask_stride = drawn if drawn == self.loss_stride else None  # for which masks may be sampled
        if stride % self.loss_stride:
            raise ValueError(f"the map of stuff has a stride that divides {stride}, not {self.loss_stride}")
        self._pyramid: Sequence[Tensor] = ()
        instances.get_submodule(pyramid).register_forward_hook(self._pick_up)

    def _pick_up(self, module: nn.Module, inputs: Any, output: Sequence[Tensor]) -> None:
        self._pyramid = output

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        if self.training and targets is not None:
            things, stuff = zip(*(split_target(target, self.num_things) for target in targets), strict=True)
            losses = self.instances(images, things)
            logits = self.logits()
            return {**losses, "loss_stuff": self.weight * self.stuff_loss(logits, targets, stuff)}
        results = self.instances(images, output_sizes=output_sizes)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        for result, logits, size, output in zip(results, self.logits(), sizes, output_sizes or sizes, strict=True):
            classes = resize_logits(logits, self.stride, size, output, self.branch.aligned).argmax(dim=0)
            regions = stuff_segments(classes, self.num_things)
            result |= fuse(result, regions, self.min_score, self.max_lost, self.min_stuff)
        return results

    def logits(self) -> Tensor:
        """The branch's logits (B, S + 1, h, w) for the pyramid that has just been computed, which is let go."""
        pyramid, self._pyramid = self._pyramid, ()
        return self.branch(pyramid)

    def stuff_loss(self, logits: Tensor, targets: Sequence[Target], stuff: Sequence[Tensor]) -> Tensor:
        """The loss at `loss_stride`, where full-size maps of targets are read; sampled ones must have it."""
        step, factor = self.loss_stride, self.stride // self.loss_stride
        if self.branch.aligned:
            logits = aligned_upsample(logits, factor)
        elif factor > 1:
            logits = F.interpolate(logits, scale_factor=factor, mode="bilinear")
        padded = torch.full((len(logits), *logits.shape[2:]), -1, dtype=torch.int64, device=logits.device)
        for grid, target, labels in zip(padded, targets, stuff, strict=True):
            read = labels if "centers" in target else labels[step // 2 :: step, step // 2 :: step]
            grid[: read.shape[0], : read.shape[1]] = read
        return stuff_loss(logits, padded)


# ------------------------------------------------------------------------------------------------------------- quality


@dataclass
class Counts:
    """What panoptic quality is made of, for one class: IoU of all matches together, and numbers of segments."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def quality(self) -> dict[str, float]:
        """pq = sq * rq; sq, the mean IoU of the matches; rq, the F1 score of finding segments. 0 without a match."""
        sq = self.iou / max(self.tp, 1)
        size = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {"pq": self.iou / size, "sq": sq, "rq": self.tp / size}


def count_overlaps(truth: Tensor, found: Tensor) -> dict[tuple[int, int], int]:
    """Pixels that each pair of segments (true id, found id) shares, void being 0; truth, found (H, W) int64."""
    pairs, lengths = (truth << 32 | found).flatten().unique_consecutive(return_counts=True)  # runs: few, so it is quick
    pairs, place = pairs.unique(return_inverse=True)
    pixels = torch.zeros_like(pairs).index_add_(0, place, lengths)
    return {(p >> 32, p & 0xFFFFFFFF): n for p, n in zip(pairs.tolist(), pixels.tolist(), strict=True)}


def match_segments(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> dict[int, Counts]:
    """Matches and misses of one image, by category.

    truth: with id, category_id, area and perhaps iscrowd of each segment; found: with id and category_id; isthing:
    {category id: whether it is a thing}, all there are. A match is of one category and of IoU above 0.5, which no two
    reach for one segment; what is found on true void does not count in the IoU. A crowd need not be found; a segment
    without a match that lies by more than half on void and on its category's crowd (of several, the last one listed, as
    in panopticapi) is no mistake. True area is what segments_info says.
    Errors: ValueError where sizes differ, or the found ids, segments_info and categories do not agree.
    """
    if truth["panoptic"].shape != found["panoptic"].shape:
        sizes = [" x ".join(map(str, x["panoptic"].shape)) for x in (found, truth)]
        raise ValueError(f"what is found has {sizes[0]} pixels, the truth {sizes[1]}")
    shared = count_overlaps(truth["panoptic"], found["panoptic"])
    true = {s["id"]: s for s in truth["segments_info"]}
    guess = {s["id"]: s for s in found["segments_info"]}
    area: Counter[int] = Counter()
    for (_, f), pixels in shared.items():
        area[f] += pixels
    check_segments(area, guess, isthing)
    counts: dict[int, Counts] = defaultdict(Counts)
    matched: set[tuple[str, int]] = set()
    for (t, f), pixels in shared.items():
        if t not in true or f not in guess or true[t].get("iscrowd"):
            continue
        category = true[t]["category_id"]
        if category != guess[f]["category_id"]:
            continue
        union = area[f] + true[t]["area"] - pixels - shared.get((0, f), 0)
        if union <= 0:
            raise ValueError(f"the area of the true segment {t} is less than what is found of it")
        if pixels / union > 0.5:
            counts[category].tp += 1
            counts[category].iou += pixels / union
            matched |= {("true", t), ("found", f)}
    for t, segment in true.items():
        if ("true", t) not in matched and not segment.get("iscrowd"):
            counts[segment["category_id"]].fn += 1
    crowds = {s["category_id"]: t for t, s in true.items() if s.get("iscrowd")}
    for f, segment in guess.items():
        forgiven = shared.get((0, f), 0) + shared.get((crowds.get(segment["category_id"], -1), f), 0)
        if ("found", f) not in matched and forgiven / area[f] <= 0.5:
            counts[segment["category_id"]].fp += 1
    return dict(counts)


def check_segments(area: Mapping[int, int], listed: Mapping[int, Any], isthing: Mapping[int, Any]) -> None:
    """ValueError unless the ids that have pixels, void aside, are those listed, and of known categories."""
    if strange := sorted(area.keys() - listed.keys() - {0}):
        raise ValueError(f"segment {strange[0]} has pixels, but segments_info does not list it")
    if missing := sorted(listed.keys() - area.keys()):
        raise ValueError(f"segments_info lists segment {missing[0]}, which has no pixel")
    for i, segment in listed.items():
        if segment["category_id"] not in isthing:
            raise ValueError(f"segment {i} is of category {segment['category_id']}, which the truth does not know")


def panoptic_quality(truth: Iterable[Panoptic], found: Iterable[Panoptic], isthing: Mapping[int, Any]) -> Scores:
    """PQ, SQ and RQ of a set of images, things and stuff together and apart.

    truth, found: image by image, and isthing: see `match_segments`, whose errors these are. Returns `mean_quality`.
    """
    return mean_quality((match_segments(t, f, isthing) for t, f in zip(truth, found, strict=True)), isthing)


def mean_quality(images: Iterable[Mapping[int, Counts]], isthing: Mapping[int, Any]) -> Scores:
    """{"All", "Things", "Stuff": {"pq", "sq", "rq", "n"}, "per_class": {id: {"pq", "sq", "rq"}}}, in 0..1.

    images: the counts of each, added up before any ratio is taken. A mean is over the n classes of which a segment was
    found, missed or made up; it is 0 where n is (panopticapi divides by zero there).
    """
    total: dict[int, Counts] = defaultdict(Counts)
    for counts in images:
        for category, image in counts.items():
            old = total[category]
            total[category] = Counts(old.iou + image.iou, old.tp + image.tp, old.fp + image.fp, old.fn + image.fn)
    per_class = {category: total[category].quality() for category in isthing if category in total}
    scores: Scores = {}
    for name, kinds in (("All", (True, False)), ("Things", (True,)), ("Stuff", (False,))):
        rows = [row for category, row in per_class.items() if bool(isthing[category]) in kinds]
        scores[name] = {key: sum(row[key] for row in rows) / max(len(rows), 1) for key in ("pq", "sq", "rq")}
        scores[name]["n"] = len(rows)
    return {**scores, "per_class": per_class}


def evaluate_coco_panoptic(
    gt_json: str | Path,
    pred_json: str | Path,
    gt_folder: str | Path | None = None,
    pred_folder: str | Path | None = None,
) -> Scores:
    """`panoptic_quality` of COCO panoptic files, the same as panopticapi's pq_compute.

    A folder holds the PNGs of the JSON file; by default it is the file's name without .json. Every image of gt_json is
    scored; predictions for others are passed over. One image at a time is in memory.
    Errors: UserError names the file and what is wrong with it.
    """
    from condinst_edu.datasets.coco_panoptic import PanopticFiles  # here: the idea itself reads no files

    truth, found = PanopticFiles(gt_json, gt_folder, truth=True), PanopticFiles(pred_json, pred_folder)

    def count(image_id: int) -> dict[int, Counts]:
        try:
            return match_segments(truth[image_id], found[image_id], truth.isthing)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{found.path}, image {image_id}: {error}.") from None

    return mean_quality(map(count, truth.image_ids), truth.isthing)
