"""Variants of lesson 7: AdaIN, Relative CoordConv, normalized focal loss, the greedy algorithm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu.coordinates import relative_coordconv
from condinst_edu.layers.losses import normalized_focal_loss
from condinst_edu.teach.references import adain

Size = tuple[int, int]


def _normalise(x: Tensor, dims: tuple[int, ...], eps: float, unbiased: bool = False) -> Tensor:
    variance = x.var(dim=dims, unbiased=unbiased, keepdim=True)
    return (x - x.mean(dim=dims, keepdim=True)) / (variance + eps).sqrt()


def _adapt(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, :, None, None] + shift[:, :, None, None]


def adain_of_the_batch(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return _adapt(_normalise(x, (0, 2, 3), eps), scale, shift)


def adain_over_channels(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return _adapt(_normalise(x, (1, 2, 3), eps), scale, shift)


def adain_one_on_the_shift(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return adain(x, scale, shift, eps) + 1


def adain_not_normalised(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return _adapt(x, scale, shift)


def adain_by_variance(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    variance = x.var(dim=(2, 3), unbiased=False, keepdim=True)
    return _adapt((x - x.mean(dim=(2, 3), keepdim=True)) / (variance + eps), scale, shift)


def adain_unbiased(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    return _adapt(_normalise(x, (2, 3), eps, unbiased=True), scale, shift)


def coordconv_flipped(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    maps = relative_coordconv(size, stride, points, radius, distance).clone()
    maps[:, :2] *= -1
    return maps


def coordconv_swapped(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    maps = relative_coordconv(size, stride, points, radius, distance)
    return torch.cat([maps[:, :2].flip(1), maps[:, 2:]], dim=1)


def coordconv_not_clipped(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    reach = 2.0 * stride * max(size) + float(points.detach().abs().sum())  # farther than any pixel
    return relative_coordconv(size, stride, points, reach, distance) * (reach / radius)


def coordconv_to_the_middle(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    middle = points.new_tensor([size[1] * stride / 2, size[0] * stride / 2]).expand_as(points)
    return relative_coordconv(size, stride, middle, radius, distance)


def coordconv_in_cells(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    return relative_coordconv(size, 1, points, radius, distance)


def coordconv_half_a_stride(size: Size, stride: int, points: Tensor, radius: float, distance: bool = False) -> Tensor:
    return relative_coordconv(size, stride, points - stride // 2, radius, distance)


def nfl_not_normalised(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, detach: bool = True
) -> Tensor:
    log_p = F.logsigmoid(torch.where(targets > 0, logits, -logits))
    return (-((1 - log_p.exp()) ** gamma) * log_p * (targets >= 0)).flatten(1).sum(dim=1)


def nfl_as_a_mean(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, detach: bool = True
) -> Tensor:
    return nfl_not_normalised(logits, targets, gamma) / targets[0].numel()


def nfl_of_the_batch(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, detach: bool = True
) -> Tensor:
    p = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    total = (((1 - p) ** gamma) * (targets >= 0)).sum().detach()
    return nfl_not_normalised(logits, targets, gamma) / total


def nfl_is_bce(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None, detach: bool = True
) -> Tensor:
    return normalized_focal_loss(logits, targets, gamma=0.0)


def _greedy(probabilities: Tensor, threshold: float, overlap: float, rule: str = "", first: bool = False) -> Tensor:
    """rule: how much of a mask is covered: "all" by all kept ones, "each" by the worst one alone, "iou" with that."""
    segmented = torch.zeros_like(probabilities[0], dtype=torch.bool)
    kept: list[Tensor] = []
    for c in probabilities:
        mask = c > threshold
        rivals = [segmented] if rule in ("", "all") else [k > threshold for k in kept]
        area = mask.sum().clamp(min=1)
        shares = [(mask & r).sum() / ((mask | r).sum() if rule == "iou" else area) for r in rivals]
        if mask.any() and all(share < overlap for share in shares):
            segmented |= mask
            kept.append(c)
    result = torch.zeros(segmented.shape, dtype=torch.int64)
    if first:
        for i in reversed(range(len(kept))):
            result[kept[i] > threshold] = i + 1
    elif kept:
        highest, index = torch.stack(kept).max(dim=0)
        result = torch.where(highest > threshold, index + 1, 0)
    return result


def greedy_by_iou(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    return _greedy(probabilities, threshold, overlap, "iou")


def greedy_mask_by_mask(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    return _greedy(probabilities, threshold, overlap, "each")


def greedy_first_come(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    return _greedy(probabilities, threshold, overlap, first=True)


def greedy_keeps_all(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    return _greedy(probabilities, threshold, 2.0)


def greedy_without_overlap(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    return _greedy(probabilities, threshold, 1e-6)
