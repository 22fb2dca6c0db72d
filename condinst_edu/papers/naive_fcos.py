"""FCOS's rules as loops, as CondInst's paper and the slides tell them: what the library is compared with.

Slow, and meant to be read beside the papers. Points are (x, y), boxes (x0, y0, x1, y1), in pixels; labels count from 1.
"""

from collections.abc import Sequence
from math import sqrt

from torch import Tensor

Box = Sequence[float]


def locations(size: tuple[int, int], stride: int) -> list[tuple[int, int]]:
    """(floor(s / 2) + x s, floor(s / 2) + y s) for all cells of a map, row by row. Source: condinst:locations."""
    height, width = size
    return [(stride // 2 + x * stride, stride // 2 + y * stride) for y in range(height) for x in range(width)]


def mass_center(mask: Tensor) -> tuple[float, float]:
    """The mean x and the mean y of a mask's pixels. Source: condinst:center-region."""
    pixels = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    return sum(x for x, _ in pixels) / len(pixels), sum(y for _, y in pixels) / len(pixels)


def candidates(
    place: tuple[float, float],
    stride: float,
    reach: tuple[float, float],
    boxes: Sequence[Box],
    centers: Sequence[Sequence[float]],
    radius: float = 1.5,
) -> list[int]:
    """The objects that a location may answer for: more than one is the ambiguity that levels reduce.

    place: (x, y) of the location; reach: the least and the greatest longest distance of its level; centers: mass
    centres; radius: r, 0 for whole boxes. Source: condinst:center-region, slides:fcos-ambiguity.
    """
    x, y = place
    found = []
    for m, ((x0, y0, x1, y1), (cx, cy)) in enumerate(zip(boxes, centers, strict=True)):
        in_box = x0 < x < x1 and y0 < y < y1
        at_level = reach[0] <= max(x - x0, y - y0, x1 - x, y1 - y) <= reach[1]
        r = radius * stride
        in_region = radius == 0 or (cx - r < x < cx + r and cy - r < y < cy + r)
        if in_box and at_level and in_region:
            found.append(m)
    return found


def smallest(objects: Sequence[int], boxes: Sequence[Box]) -> list[int]:
    """Those of the objects whose boxes have the smallest area: the one that the location takes, several if they tie."""
    areas = {m: (boxes[m][2] - boxes[m][0]) * (boxes[m][3] - boxes[m][1]) for m in objects}
    return [m for m in objects if areas[m] == min(areas.values())]


def missed(taken: Sequence[int], count: int) -> list[int]:
    """Of `count` objects those that no location takes; the share of the others is the best possible recall.

    taken: the object of each positive location. Source: slides:fcos-recall.
    """
    return [m for m in range(count) if m not in taken]


def centerness(left: float, top: float, right: float, bottom: float) -> float:
    """sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)), from distances to a box's sides. Source: slides:centerness."""
    return sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def focal(p: Tensor, is_class: bool, alpha: float = 0.25) -> Tensor:
    """Focal loss of one probability with gamma = 2: -a (1 - p)^2 log p, or -(1 - a) p^2 log(1 - p)."""
    return -alpha * (1 - p) ** 2 * p.log() if is_class else -(1 - alpha) * p**2 * (1 - p).log()


def giou_loss(a: Tensor, b: Sequence[float] | Tensor, smooth: float = 0.0) -> Tensor:
    """1 - GIoU of two boxes given as (left, top, right, bottom) distances from one location.

    smooth: added to intersection and union, 1 in the official code.
    """
    intersection = (a[0].clamp(max=b[0]) + a[2].clamp(max=b[2])) * (a[1].clamp(max=b[1]) + a[3].clamp(max=b[3]))
    hull = (a[0].clamp(min=b[0]) + a[2].clamp(min=b[2])) * (a[1].clamp(min=b[1]) + a[3].clamp(min=b[3]))
    union = (a[0] + a[2]) * (a[1] + a[3]) + (b[0] + b[2]) * (b[1] + b[3]) - intersection
    return 1 - ((intersection + smooth) / (union + smooth) - (hull - union) / hull)


def fcos_losses(
    logits: Tensor, distances: Tensor, center: Tensor, labels: Sequence[int], truth: Tensor, smooth: float = 0.0
) -> dict[str, Tensor]:
    """L_fcos of Eq. 1: focal loss of the classes, GIoU loss of the boxes, entropy of the centre-ness.

    Of L locations: logits (L, K), distances (L, 4) and center (L,), logits, as predicted; labels, 0 for none, and true
    distances (L, 4). Box losses are weighted by the true centre-ness, as in the official code. Source: condinst:eq-1.
    """
    classes = boxes = entropy = weights = logits.new_zeros(())
    for at, label in enumerate(labels):
        for k in range(logits.shape[1]):
            classes = classes + focal(logits[at, k].sigmoid(), k + 1 == label)
        if label:
            c, p = centerness(*truth[at].tolist()), center[at].sigmoid()
            boxes, weights = boxes + c * giou_loss(distances[at], truth[at].tolist(), smooth), weights + c
            entropy = entropy - c * p.log() - (1 - c) * (1 - p).log()
    positives = max(sum(label > 0 for label in labels), 1)
    return {
        "loss_class": classes / positives,
        "loss_box": boxes / max(float(weights), 1e-6),
        "loss_centerness": entropy / positives,
    }


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def box_nms(
    boxes: Sequence[Box], scores: Sequence[float], labels: Sequence[int], threshold: float = 0.6, top: int = 100
) -> list[int]:
    """What stays: by falling score, each box that overlaps no kept one of its class by more; the best of these.

    Source: condinst:inference.
    """
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(labels[i] == labels[k] and box_iou(boxes[i], boxes[k]) > threshold for k in kept):
            kept.append(i)
    return kept[:top]
