"""Variants of lesson 4: which locations train masks, mask NMS, the semantic map."""

from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from condinst_edu.condinst import mask_nms
from condinst_edu.fcos import Assignment, Outputs
from condinst_edu.teach.variants.lesson_00 import enclosing_boxes

By = Literal["score", "random"]
Sample = tuple[Tensor, Tensor]


def _best(score: Tensor, positive: Tensor, limit: int) -> Sample:
    best = score.topk(min(limit, score.shape[1]), dim=1).indices
    return best, positive.gather(1, best)


def _class_score(outputs: Outputs, assignment: Assignment) -> Tensor:
    label = (assignment.labels - 1).clamp(min=0)[..., None]
    return outputs.logits.gather(2, label).squeeze(2).sigmoid()


def sample_by_class_only(outputs: Outputs, assignment: Assignment, limit: int, by: By = "score") -> Sample:
    positive = assignment.labels > 0
    return _best(_class_score(outputs, assignment).masked_fill(~positive, -1), positive, limit)


def sample_by_centerness_only(outputs: Outputs, assignment: Assignment, limit: int, by: By = "score") -> Sample:
    positive = assignment.labels > 0
    return _best(outputs.centerness.sigmoid().masked_fill(~positive, -1), positive, limit)


def sample_by_best_class(outputs: Outputs, assignment: Assignment, limit: int, by: By = "score") -> Sample:
    positive = assignment.labels > 0
    score = outputs.logits.amax(-1).sigmoid() * outputs.centerness.sigmoid()
    return _best(score.masked_fill(~positive, -1), positive, limit)


def sample_background_too(outputs: Outputs, assignment: Assignment, limit: int, by: By = "score") -> Sample:
    score = _class_score(outputs, assignment) * outputs.centerness.sigmoid()
    return _best(score, assignment.labels > 0, limit)


def sample_the_worst(outputs: Outputs, assignment: Assignment, limit: int, by: By = "score") -> Sample:
    positive = assignment.labels > 0
    score = _class_score(outputs, assignment) * outputs.centerness.sigmoid()
    return _best((1 - score).masked_fill(~positive, -1), positive, limit)


def nms_by_box(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    return batched_nms(enclosing_boxes(masks).float(), scores, labels, threshold)


def nms_across_classes(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    return mask_nms(masks, scores, torch.ones_like(labels), threshold)


def nms_not_greedy(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    flat = masks[order].flatten(1).float()
    overlap = flat @ flat.T
    area = flat.sum(dim=1)
    iou = overlap / (area[:, None] + area - overlap).clamp(min=1)
    rival = ((iou > threshold) & (labels[order][:, None] == labels[order])).triu(diagonal=1)
    return order[~rival.any(dim=0)]


def nms_unsorted(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    return mask_nms(masks, -torch.arange(len(scores)), labels, threshold)


def _paint(masks: Tensor, labels: Tensor, order: Tensor, stride: int, start: int) -> Tensor:
    """Masks laid over each other in an order, the last on top, read at every stride-th pixel."""
    covered = masks[:, start::stride, start::stride]
    result = torch.zeros(covered.shape[1:], dtype=torch.int64)
    for i in order.tolist():
        result[covered[i]] = labels[i]
    return result


def _by_size(masks: Tensor) -> Tensor:
    return masks.flatten(1).sum(dim=1).argsort(descending=True, stable=True)


def semantic_largest(masks: Tensor, labels: Tensor, stride: int) -> Tensor:
    return _paint(masks, labels, _by_size(masks).flip(0), stride, stride // 2)


def semantic_last(masks: Tensor, labels: Tensor, stride: int) -> Tensor:
    return _paint(masks, labels, torch.arange(len(masks)), stride, stride // 2)


def semantic_from_corner(masks: Tensor, labels: Tensor, stride: int) -> Tensor:
    return _paint(masks, labels, _by_size(masks), stride, 0)


def semantic_instances(masks: Tensor, labels: Tensor, stride: int) -> Tensor:
    return _paint(masks, torch.arange(1, len(masks) + 1), _by_size(masks), stride, stride // 2)
