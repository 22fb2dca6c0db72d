"""Variants of lesson 1: locations, assignment, centre-ness, focal and GIoU loss, decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu.coordinates import locations
from condinst_edu.fcos import Assignment, Points


def locations_at_corner(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return locations(size, stride, device) - stride // 2


def locations_swapped(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return locations(size, stride, device).flip(1)


def locations_by_columns(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return locations(size, stride, device).reshape(*size, 2).transpose(0, 1).reshape(-1, 2)


def locations_in_cells(size: tuple[int, int], stride: int, device: torch.device | None = None) -> Tensor:
    return (locations(size, stride, device) - stride // 2) / stride


def _assign(points: Points, boxes: Tensor, labels: Tensor, allowed: Tensor, largest: bool = False) -> Assignment:
    """Each location's smallest (or largest) object among the allowed (B, L, M)."""
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[:, None].expand(allowed.shape)  # (B, L, M)
    size = (-area if largest else area).masked_fill(~allowed, torch.inf)
    best, matched = size.min(dim=-1)
    found = labels.gather(1, matched).masked_fill(best == torch.inf, 0)
    box = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    distances = torch.cat([points.xy - box[..., :2], box[..., 2:] - points.xy], dim=-1)
    return Assignment(found, distances / points.stride[:, None], matched)


def _inside(points: Points, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which locations lie in which boxes (B, L, M), and the longest of the four distances."""
    xy = points.xy[:, None]  # (L, 1, 2)
    sides = torch.cat([xy - boxes[:, None, :, :2], boxes[:, None, :, 2:] - xy], dim=-1)  # (B, L, M, 4)
    return (sides.amin(-1) > 0) & (labels > 0)[:, None], sides.amax(-1)


def _central(points: Points, centers: Tensor, radius: Tensor) -> Tensor:
    """Which locations lie within a radius (L,) in pixels of which centres: (B, L, M)."""
    return (points.xy[:, None] - centers[:, None]).abs().amax(-1) < radius[:, None]


def _in_range(points: Points, longest: Tensor) -> Tensor:
    return (longest >= points.reach[:, :1]) & (longest <= points.reach[:, 1:])


def assign_largest(points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    allowed = inside & _in_range(points, longest) & _central(points, centers, radius * points.stride)
    return _assign(points, boxes, labels, allowed, largest=True)


def assign_whole_box(points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    return _assign(points, boxes, labels, inside & _in_range(points, longest))


def assign_radius_in_pixels(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    central = _central(points, centers, torch.full_like(points.stride, radius))
    return _assign(points, boxes, labels, inside & _in_range(points, longest) & central)


def assign_open_ranges(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    in_range = (longest > points.reach[:, :1]) & (longest < points.reach[:, 1:])
    return _assign(points, boxes, labels, inside & in_range & _central(points, centers, radius * points.stride))


def assign_every_level(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    inside, _ = _inside(points, boxes, labels)
    return _assign(points, boxes, labels, inside & _central(points, centers, radius * points.stride))


def assign_closed_radius(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    off_center = (points.xy[:, None] - centers[:, None]).abs().amax(-1)  # (B, L, M)
    return _assign(
        points, boxes, labels, inside & _in_range(points, longest) & (off_center <= radius * points.stride[:, None])
    )


def assign_box_middle(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    central = _central(points, (boxes[..., :2] + boxes[..., 2:]) / 2, radius * points.stride)
    return _assign(points, boxes, labels, inside & _in_range(points, longest) & central)


def assign_outside_too(
    points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5
) -> Assignment:
    _, longest = _inside(points, boxes, labels)
    real = (labels > 0)[:, None]
    return _assign(
        points, boxes, labels, real & _in_range(points, longest) & _central(points, centers, radius * points.stride)
    )


def assign_in_pixels(points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5) -> Assignment:
    inside, longest = _inside(points, boxes, labels)
    allowed = inside & _in_range(points, longest) & _central(points, centers, radius * points.stride)
    result = _assign(points, boxes, labels, allowed)
    return result._replace(distances=result.distances * points.stride[:, None])


def _ratios(distances: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = distances.unbind(-1)
    return (
        torch.minimum(left, right) / torch.maximum(left, right),
        torch.minimum(top, bottom) / torch.maximum(top, bottom),
    )


def centerness_without_root(distances: Tensor) -> Tensor:
    x, y = _ratios(distances)
    return x * y


def centerness_of_all_sides(distances: Tensor) -> Tensor:
    return (distances.amin(-1) / distances.amax(-1)).sqrt()


def centerness_inverted(distances: Tensor) -> Tensor:
    x, y = _ratios(distances)
    return 1 / (x * y).sqrt()


def centerness_of_neighbours(distances: Tensor) -> Tensor:
    return _ratios(distances[..., [0, 2, 1, 3]])[0].mul(_ratios(distances[..., [0, 2, 1, 3]])[1]).sqrt()


def _focal(logits: Tensor, targets: Tensor, positive: float, negative: float, gamma: float) -> Tensor:
    """Focal loss of every entry; positive, negative: the weights of the two kinds of targets."""
    missing = torch.where(targets > 0, 1 - logits.sigmoid(), logits.sigmoid())  # 1 - p_t
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(targets > 0, positive, negative) * missing**gamma * entropy


def focal_without_alpha(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    return _focal(logits, targets, 1, 1, gamma).sum()


def focal_alpha_swapped(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    return _focal(logits, targets, 1 - alpha, alpha, gamma).sum()


def focal_without_gamma(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    return _focal(logits, targets, alpha, 1 - alpha, 0).sum()


def focal_mean(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    return _focal(logits, targets, alpha, 1 - alpha, gamma).mean()


def focal_softmax(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    p = logits.softmax(-1)
    right = torch.where(targets > 0, p, 1 - p)
    return (torch.where(targets > 0, alpha, 1 - alpha) * (1 - right) ** gamma * -right.clamp(min=1e-8).log()).sum()


def _overlap(distances: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and enclosing box's area (N,) of boxes given as distances."""

    def area(sides: Tensor) -> Tensor:
        return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])

    intersection = area(torch.minimum(distances, targets))
    union = area(distances) + area(targets) - intersection
    return intersection, union, area(torch.maximum(distances, targets))


def giou_plain_iou(distances: Tensor, targets: Tensor, smooth: float = 0) -> Tensor:
    intersection, union, _ = _overlap(distances, targets)
    return 1 - (intersection + smooth) / (union + smooth)


def giou_penalty_sign(distances: Tensor, targets: Tensor, smooth: float = 0) -> Tensor:
    intersection, union, hull = _overlap(distances, targets)
    return 1 - (intersection + smooth) / (union + smooth) - (hull - union) / hull


def giou_not_a_loss(distances: Tensor, targets: Tensor, smooth: float = 0) -> Tensor:
    intersection, union, hull = _overlap(distances, targets)
    return (intersection + smooth) / (union + smooth) - (hull - union) / hull


def giou_sides_as_sizes(distances: Tensor, targets: Tensor, smooth: float = 0) -> Tensor:
    def area(x: Tensor) -> Tensor:
        return x[:, 2] * x[:, 3]

    inner, outer = torch.minimum(distances, targets), torch.maximum(distances, targets)
    intersection, hull = area(inner), area(outer)
    union = area(distances) + area(targets) - intersection
    return 1 - (intersection + smooth) / (union + smooth) + (hull - union) / hull


def _boxes(points: Points, sides: Tensor) -> Tensor:
    return torch.cat([points.xy - sides[..., :2], points.xy + sides[..., 2:]], dim=-1)


def decode_exponential(points: Points, distances: Tensor) -> Tensor:
    return _boxes(points, distances.exp() * points.stride[:, None])


def decode_without_stride(points: Points, distances: Tensor) -> Tensor:
    return _boxes(points, distances)


def decode_swapped(points: Points, distances: Tensor) -> Tensor:
    return _boxes(points, (distances * points.stride[:, None])[..., [1, 0, 3, 2]])


def decode_size(points: Points, distances: Tensor) -> Tensor:
    sides = distances * points.stride[:, None]
    return torch.cat([points.xy - sides[..., :2], sides[..., :2] + sides[..., 2:]], dim=-1)
