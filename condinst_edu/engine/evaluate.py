"""Box and mask AP as COCO defines it, by pycocotools; and the AP that perfect masks at a coarse stride can reach.

Legend: N detections or objects, H, W image, h, w mask map.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Subset

from condinst_edu.datasets.batching import build_eval_loader
from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.datasets.coco_json import Coco, check_coco, encode_segmentation, read_coco
from condinst_edu.datasets.coco_panoptic import PanopticDataset
from condinst_edu.datasets.transforms import drop_crowd, resize_nearest, resized_size, sample_masks
from condinst_edu.engine.distributed import gather_to_first, of_first, rank, world
from condinst_edu.engine.panoptic import evaluate_panoptic, quality_table
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.layers.upsample import resize_masks
from condinst_edu.progress import progress_bar

Result = dict[str, Any]
Scores = dict[str, Any]

KINDS = {"bbox": "box", "segm": "mask"}  # pycocotools' word: ours
# Where COCOeval.summarize puts each number.
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR1": 6, "AR10": 7, "AR100": 8}


# Detections as COCO results


def encode_results(detections: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[Result]:
    """One image's detections as COCO results, in the same order.

    detections: boxes (N, 4) xyxy in pixels, labels (N,) from 1, scores (N,), and masks (N, H, W) bool if the model
    draws them. Returns N dicts with image_id, category_id, score, bbox (x, y, width, height), segmentation (RLE, text).
    """
    boxes = detections["boxes"].detach().float().cpu()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    rows = zip(boxes.tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    results: list[Result] = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "score": score, "bbox": box}
        for box, label, score in rows
    ]
    if "masks" in detections:
        for result, rle in zip(results, encode_masks(detections["masks"]), strict=True):
            result["segmentation"] = rle
    return results


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Masks (N, H, W) bool as N compressed RLEs, their counts as text; the same as of pycocotools' encode.

    Only the rectangle that a mask covers is walked through, which for objects of usual sizes is several times quicker.
    """
    bitmaps = masks.detach().to("cpu", torch.bool).contiguous().numpy()
    size = list(bitmaps.shape[1:])
    rows, columns = (np.logical_or.reduce(bitmaps, axis=axis) for axis in (2, 1))  # (N, H), (N, W)
    covered = zip(bitmaps, map(np.flatnonzero, rows), map(np.flatnonzero, columns), strict=True)
    counts = [_run_lengths(*mask_rows_columns) for mask_rows_columns in covered]
    rles = [mask_utils.frPyObjects({"size": size, "counts": c}, *size) for c in counts]
    return [{"size": size, "counts": rle["counts"].decode()} for rle in rles]


def _run_lengths(mask: NDArray[np.bool_], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> list[int]:
    """Run lengths, column by column and beginning outside, of a mask (H, W) that covers these rows and columns."""
    height, width = mask.shape
    if not len(rows):
        return [height * width]
    y, x = rows[0], columns[0]
    box = mask[y : rows[-1] + 1, x : columns[-1] + 1].T  # (w, h)
    framed = np.zeros((box.shape[0], box.shape[1] + 1), bool)  # each column ends with a pixel outside
    framed[:, :-1] = box
    flat = framed.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.concatenate([[0], changes])
    column, row = np.divmod(changes, framed.shape[1])
    limits = (column + x) * height + row + y
    joined = np.flatnonzero(limits[1:] == limits[:-1])  # a run to the end of one column goes on in the next
    limits = np.delete(limits, np.concatenate([joined, joined + 1]))
    ends = limits if limits[-1] == height * width else np.append(limits, height * width)
    runs: list[int] = np.diff(ends, prepend=0).tolist()
    return runs


# Average precision


def coco_ap(
    annotations: str | Path | dict[str, Any],
    results: Sequence[Result],
    kinds: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] | None = None,
    plain: bool = False,
) -> Scores:
    """COCO AP and AR of results: {"box": {...}, "mask": {...}}, each with AP, AP50, ... AR100 and per_class {name: AP}.

    annotations: a COCO file or its contents; kinds: "bbox" or "segm" or both; image_ids: only these images. A number is
    -1 where the ground truth has nothing that counts for it, as in pycocotools.
    plain=True is pycocotools' loadRes and COCOeval as they come. Otherwise two things are put right: a detection's
    mask is small, medium or large by its own area, not its box's (as detectron2 has it; APs, APm, APl and no others),
    and an object whose annotation has id 0 can be found (COCOeval takes a match with id 0 for none).
    Errors: UserError for annotations that are none, or results of other images.
    """
    coco = read_coco(annotations) if isinstance(annotations, str | Path) else check_coco(annotations, "ground truth")
    strange = {result["image_id"] for result in results} - {image["id"] for image in coco["images"]}
    if strange:
        raise UserError(f"results of image {min(strange)}, which the annotations do not have.")
    truth = _truth(coco, renumber=not plain)
    return {KINDS[kind]: _score(truth, _found(coco, results, kind, plain), kind, image_ids) for kind in kinds}


def _truth(coco: Coco, renumber: bool) -> COCO:
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    objects = []
    for i, annotation in enumerate(coco["annotations"]):
        size = sizes[annotation["image_id"]]
        counts = encode_segmentation(annotation["segmentation"], size, f"annotations[{i}]")
        rle = {"size": list(size), "counts": counts}
        added = {"id": i + 1 if renumber else annotation.get("id", i + 1), "segmentation": rle}
        added["iscrowd"] = int(annotation.get("iscrowd", 0))
        if "area" not in annotation:
            added["area"] = float(mask_utils.area(rle))
        objects.append({**annotation, **added})  # a copy: COCOeval writes into it
    return _index({**coco, "annotations": objects})


def _found(coco: Coco, results: Sequence[Result], kind: str, plain: bool) -> COCO:
    detections = []
    for i, result in enumerate(results, start=1):
        box = result["bbox"] if "bbox" in result else mask_utils.toBbox(result["segmentation"]).tolist()
        by_box = kind == "bbox" or (plain and "bbox" in result)
        area = box[2] * box[3] if by_box else float(mask_utils.area(result["segmentation"]))
        detections.append({**result, "id": i, "bbox": box, "area": area, "iscrowd": 0})
    return _index({**coco, "annotations": detections})


def _index(coco: Coco) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = coco
        index.createIndex()
    return index


def _score(truth: COCO, found: COCO, kind: str, image_ids: Sequence[int] | None) -> Scores:
    evaluation = COCOeval(truth, found, kind)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    scores: Scores = {name: float(evaluation.stats[i]) for name, i in STATS.items()}
    names = [category["name"] for category in truth.loadCats(evaluation.params.catIds)]
    scores["per_class"] = {}
    for k, (name, category_id) in enumerate(zip(names, evaluation.params.catIds, strict=True)):
        key = name if names.count(name) == 1 else f"{name} ({category_id})"
        precision = evaluation.eval["precision"][:, :, k, 0, -1]  # (IoU, recall) of all sizes, at most 100 detections
        precision = precision[precision > -1]
        scores["per_class"][key] = float(precision.mean()) if precision.size else -1.0
    return scores


def mask_ap_at(dataset: CocoDataset, results: Sequence[Result], thresholds: Sequence[float]) -> dict[float, float]:
    """Mask AP at each single IoU threshold, the mean over classes; as `coco_ap` in all else."""
    truth = dataset.truth()
    coco = read_coco(truth) if isinstance(truth, str) else check_coco(truth, "ground truth")
    evaluation = COCOeval(_truth(coco, renumber=True), _found(coco, results, "segm", plain=False), "segm")
    evaluation.params.imgIds = list(dataset.image_ids)
    evaluation.params.iouThrs = np.array(thresholds)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) of all sizes
    return {t: float(p[p > -1].mean()) if (p > -1).any() else -1.0 for t, p in zip(thresholds, precision, strict=True)}


# Models


def evaluate(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    short_side: int | None = None,
    max_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    workers: int = 0,
) -> Scores:
    """Box and mask AP of a model on the images of a set; the model is left on `device`, in the mode it was in.

    model([image (3, H, W) in [0, 1]], output_sizes=[(height, width)]) gives one dict of detections per image; without
    masks, box AP alone. short_side, max_size: pixels of the image that the model sees, None for the stored size.
    Returns `coco_ap`, or for a PanopticDataset the panoptic quality (`evaluate_panoptic`). At no time are bitmaps of
    more than one image in memory. Several processes (`join_processes`) share the images; the first one scores all
    results and tells the others.
    """
    if isinstance(dataset, PanopticDataset):
        return evaluate_panoptic(model, dataset, short_side, max_size, device, progress, workers)
    results = detect_all(model, dataset, short_side, max_size, device, progress, workers)
    kinds = ("bbox", "segm") if all("segmentation" in result for result in results) else ("bbox",)
    return of_first(coco_ap(dataset.truth(), results, kinds, dataset.image_ids) if rank() == 0 else None)


@torch.inference_mode()
def detect_all(
    model: nn.Module,
    dataset: CocoDataset,
    short_side: int | None = None,
    max_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    workers: int = 0,
) -> list[Result]:
    """Detections of a model on all images of a set, as COCO results; arguments as in `evaluate`.

    Of several processes, each takes every world()-th image, and the first gets all results, the others none.
    """
    training = model.training
    model.to(device).eval()
    results: list[Result] = []
    share: Any = dataset if world() == 1 else Subset(dataset, range(rank(), len(dataset), world()))
    with progress_bar(progress and rank() == 0) as bar:
        task = bar.add_task("evaluating", total=len(share), note="")
        for image, image_id, size in build_eval_loader(share, short_side, max_size, workers):
            detections = model([image.to(device)], output_sizes=[size])[0]
            results += encode_results(detections, image_id, dataset.category_ids)
            bar.advance(task)
    model.train(training)
    return [result for part in gather_to_first(results) for result in part]


def report(scores: Scores, out: Path | None = None) -> None:
    """Print the scores as a table, in percent, and write them to `out` as JSON if given."""
    Console().print(quality_table(scores) if "All" in scores else _ap_table(scores))
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(json.dumps(scores, indent=2))


def headline(scores: Scores) -> float:
    """The one number that tells whether a model is better: PQ, else mask AP, else box AP."""
    if "All" in scores:
        return float(scores["All"]["pq"])
    return float(scores["mask" if "mask" in scores else "box"]["AP"])


def _ap_table(scores: Scores) -> Table:
    table = Table("AP in percent", *scores)
    for name in STATS:
        table.add_row(name, *(_percent(kind[name]) for kind in scores.values()))
    classes = next(iter(scores.values()))["per_class"]
    if len(classes) <= 20:
        table.add_section()
        for name in classes:
            table.add_row(name, *(_percent(kind["per_class"][name]) for kind in scores.values()))
    return table


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


# The ceiling of a mask stride


def mask_ceiling(
    dataset: CocoDataset, stride: int, short_side: int | None = None, max_size: int | None = None
) -> Scores:
    """AP of perfect masks at a mask stride: what a model with that stride could reach at most at that image size.

    Every object's mask is read at the cells of the mask map and brought back to the image as a model's is, with its own
    box and label and score 1. stride in pixels of the image that the model sees, which short_side and max_size tell.
    """
    results: list[Result] = []
    for target, size in _targets(dataset):
        input_size = size if short_side is None else resized_size(size, short_side, max_size or 2**31)
        logits = ceiling_logits(resize_nearest(target["masks"], input_size), stride)
        masks = resize_masks(logits, stride, input_size, size)
        detections = {"boxes": target["boxes"], "labels": target["labels"], "masks": masks}
        detections["scores"] = torch.ones(len(masks))
        results += encode_results(detections, target["image_id"], dataset.category_ids)
    return coco_ap(dataset.truth(), results, image_ids=dataset.image_ids)


def _targets(dataset: CocoDataset) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    for i, size in enumerate(dataset.sizes):
        yield drop_crowd(dataset.target(i)), size


def ceiling_logits(masks: Tensor, stride: int) -> Tensor:
    """Logits (N, h, w) of the surest model: 20 in the cells on masks (N, H, W), -20 elsewhere, input padded to 32s."""
    height, width = masks.shape[1:]
    padded = nn.functional.pad(masks, (0, -width % 32, 0, -height % 32))
    return sample_masks(padded, stride).float() * 40 - 20
