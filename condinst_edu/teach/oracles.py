"""What a model would score if one part of its answers were right: the truth put in the place of its masks, or classes.

An answer is a model's result for one image: masks (N, H, W) bool, labels and scores (N,), by falling score.

Legend: N detections and M objects of an image, H, W image.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.evaluate import coco_ap, encode_results
from condinst_edu.layers.images import Target
from condinst_edu.layers.masks import exact_centers, mask_boxes
from condinst_edu.solo import assign_cells, mask_targets, resize
from condinst_edu.teach.scoring import mask_iou

Answer = Mapping[str, Tensor]


def repair(answer: Answer, target: Target, masks: bool = False, labels: bool = False, once: bool = False) -> Answer:
    """An answer with the truth in place of some of it, wherever it overlaps an object by more than an IoU of 0.1.

    masks, labels: give it the mask or the label of the object that it overlaps most; once: of several answers for one
    object only the surest stays. target: masks (M, H, W), labels (M,), M at least 1.
    """
    truth = target["masks"].bool()
    iou, owner = mask_iou(answer["masks"], truth, torch.zeros(len(truth), dtype=torch.bool)).max(dim=1)
    near = iou > 0.1
    found = {"masks": answer["masks"], "labels": answer["labels"], "scores": answer["scores"]}
    if masks:
        found["masks"] = torch.where(near[:, None, None], truth[owner], found["masks"])
    if labels:
        found["labels"] = torch.where(near, target["labels"][owner], found["labels"])
    if once:
        again = ((owner[:, None] == owner) & near).tril(diagonal=-1).any(dim=1)  # a surer one has its object
        found = {key: value[~(again & near)] for key, value in found.items()}
    return found


def perfect_cells(
    target: Target, grids: Sequence[int], strides: Sequence[int], ranges: Sequence[tuple[float, float]]
) -> Answer:
    """What a SOLO would answer if each positive cell drew its object's true mask, at half its grid's stride.

    target: of an image whose sides are multiples of all strides. Objects without a cell are missing.
    """
    truth = target["masks"].bool()
    size = (truth.shape[1], truth.shape[2])
    centers = exact_centers(truth)
    drawn: dict[int, Tensor] = {}  # mask by object
    for grid, stride, scales in zip(grids, strides, ranges, strict=True):
        labels, owner = assign_cells(centers, target, size, grid, scales)
        small = mask_targets(truth, stride // 2, (2 * size[0] // stride, 2 * size[1] // stride))
        whole = resize(small.float(), size) > 0.5
        drawn |= {int(m): whole[m] for m in owner[labels > 0].unique() if int(m) not in drawn}
    masks = torch.stack(list(drawn.values())) if drawn else truth[:0]
    return {"masks": masks, "labels": target["labels"][list(drawn)], "scores": torch.ones(len(drawn))}


def answers_ap(dataset: CocoDataset, answers: Iterable[Answer]) -> float:
    """Mask AP, in percent, of one answer for each of the dataset's first images."""
    results, image_ids = [], []
    for image_id, answer in zip(dataset.image_ids, answers, strict=False):
        result = {**answer, "boxes": mask_boxes(answer["masks"])}
        results += encode_results(result, image_id, dataset.category_ids)
        image_ids.append(image_id)
    return 100 * coco_ap(dataset.truth(), results, kinds=("segm",), image_ids=image_ids)["mask"]["AP"]
