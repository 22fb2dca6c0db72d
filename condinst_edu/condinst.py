"""CondInst: FCOS finds the instances, and for each predicts the filters of a small network that draws its mask.

Order of the data: images -> FCOS with a controller as its top module -> the bottom branch's features -> (training)
some positive locations, their mask heads, dice loss, (inference) NMS, the mask heads of what is left, masks at the
output size. CondInst, section 2; what the paper leaves out is as in the official code, unless said.

Legend: B images, L locations, K classes, M objects of an image, S sampled locations of an image, N detections,
C bottom channels, H, W map of the bottom branch.
"""

from collections.abc import Sequence
from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.fcos import (
    FCOS,
    Assignment,
    Instances,
    Outputs,
    Points,
    fcos_losses,
    keep_best,
    to_output_size,
)
from condinst_edu.layers.blocks import Norm, conv_block
from condinst_edu.layers.images import Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import dice_loss, normaliser
from condinst_edu.layers.upsample import aligned_upsample, resize_masks
from condinst_edu.mask_head import DynamicMaskHead


class BottomBranch(nn.Module):
    """One map of features for all instances, from the pyramid's finest levels.

    in_channels: of the pyramid; num_levels: how many levels it takes, from the finest on (3: P3, P4, P5; 1: the
    conference version); channels: of its convolutions; out_channels: C_bottom; convs: 3x3 convolutions after the sum;
    first: levels it passes over (1 in a pyramid that has P2 for somebody else).
    forward: the pyramid -> (B, out_channels, H, W) at the stride of the first level it takes.
    Source: condinst:bottom-branch (the coarser levels are upsampled and added, then refined by four 3x3 convolutions).
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_levels: int = 3,
        channels: int = 128,
        out_channels: int = 8,
        convs: int = 4,
        norm: Norm = "bn",
        first: int = 0,
    ) -> None:
        super().__init__()
        if num_levels < 1 or out_channels < 1:
            raise ValueError(
                f"the bottom branch has a level and a channel or more, not {num_levels} and {out_channels}"
            )
        self.out_channels, self.first = out_channels, first
        self.refine = nn.ModuleList(conv_block(in_channels, channels, norm=norm) for _ in range(num_levels))
        blocks = [conv_block(channels, channels, norm=norm) for _ in range(convs)]
        self.tower = nn.Sequential(*blocks, nn.Conv2d(channels, out_channels, 1))

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        levels = pyramid[self.first :]
        total = self.refine[0](levels[0])
        for i, refine in enumerate(self.refine[1:], start=1):
            total = total + aligned_upsample(refine(levels[i]), 2**i)
        return self.tower(total)


class SemanticHead(nn.Sequential):
    """Auxiliary task of training: class logits (B, K, H, W) of every cell of the finest level.

    Source: condinst:semantic-loss.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 128) -> None:
        logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.constant_(logits.bias, -log(99))  # type: ignore[arg-type]
        super().__init__(conv_block(in_channels, channels), conv_block(channels, channels), logits)


# ----------------------------------------------------------------------------------------------------------- training


def sample_locations(
    outputs: Outputs, assignment: Assignment, limit: int, by: Literal["score", "random"] = "score"
) -> tuple[Tensor, Tensor]:
    """At most `limit` positive locations of every image, whose masks are trained.

    by: "score", the best by the detector's own score for the object's class (classification times centre-ness);
    "random", any (the conference version). Returns their indices (B, S) and which of these are positive (B, S).
    Source: condinst:top-64.
    """
    positive = assignment.labels > 0  # (B, L)
    with torch.no_grad():
        if by == "random":
            score = torch.rand(positive.shape, device=positive.device)
        else:
            label = (assignment.labels - 1).clamp(min=0)[..., None]
            score = outputs.logits.gather(2, label).squeeze(2).sigmoid() * outputs.centerness.sigmoid()
        score = score.masked_fill(~positive, -1)
        best = score.topk(min(limit, score.shape[1]), dim=1).indices
    return best, positive.gather(1, best)


def sampled_masks(targets: Sequence[Target], stride: int, size: Size) -> Tensor:
    """Target masks (B, M, *size) bool on the grid of the predicted masks, padded with empty ones; M is at least 1.

    Full-size masks are read at every stride-th pixel from stride // 2 on; those of a target with `centers` already are.
    """
    most = max(1, *(len(target["masks"]) for target in targets))
    result = torch.zeros(len(targets), most, *size, dtype=torch.bool, device=targets[0]["masks"].device)
    for padded, target in zip(result, targets, strict=True):
        masks = target["masks"]
        if "centers" not in target:
            masks = masks[:, stride // 2 :: stride, stride // 2 :: stride]
        padded[: len(masks), : masks.shape[1], : masks.shape[2]] = masks.bool()
    return result


def semantic_targets(targets: Sequence[Target], stride: int, size: Size) -> Tensor:
    """Label of the smallest object on each cell, 0 where there is none: (B, *size) int64.

    Read from the target's full-size masks, or from its `semantic` (h, w) map where the masks are already sampled.
    """
    result = torch.zeros(len(targets), *size, dtype=torch.int64, device=targets[0]["boxes"].device)
    for padded, target in zip(result, targets, strict=True):
        if "semantic" in target:
            labels = target["semantic"]
        elif "centers" in target:
            raise ValueError("the semantic loss needs full-size masks, or a 'semantic' map beside the sampled ones")
        else:
            labels = semantic_map(target["masks"], target["labels"], stride)
        padded[: labels.shape[0], : labels.shape[1]] = labels
    return result


def semantic_map(masks: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Label of the smallest of the masks (M, H, W) that cover each cell, 0 where none does: (h, w) int64."""
    covered = masks[:, stride // 2 :: stride, stride // 2 :: stride].bool()  # (M, h, w)
    return smallest_label(covered, masks.flatten(1).sum(dim=1), labels)


def smallest_label(covered: Tensor, area: Tensor, labels: Tensor) -> Tensor:
    """Label of the smallest of M objects on each cell, 0 where there is none: (h, w) int64.

    covered (M, h, w) bool: the cells of each object; area (M,): in any unit; labels (M,).
    """
    if not len(covered):
        return torch.zeros(covered.shape[1:], dtype=torch.int64, device=covered.device)
    sizes = area.float()[:, None, None].expand(covered.shape)
    smallest, index = sizes.masked_fill(~covered, torch.inf).min(dim=0)
    return labels[index].masked_fill(smallest == torch.inf, 0)


def semantic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of all cells, divided by the number of cells that an object covers.

    logits (B, K, H, W); labels (B, H, W) from 0. Source: condinst:semantic-loss.
    """
    one_hot = F.one_hot(labels, logits.shape[1] + 1)[..., 1:].permute(0, 3, 1, 2).to(logits.dtype)
    total = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
    return total / normaliser((labels > 0).sum().float())


# ---------------------------------------------------------------------------------------------------------- inference


def mask_nms(masks: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression by the IoU of masks of the same class; no box is needed.

    masks (N, H, W) bool, any sampling; scores, labels (N,). Returns the indices that stay, by falling score.
    Source: condinst:table-5.
    """
    order = scores.argsort(descending=True, stable=True)
    flat = masks[order].flatten(1).float()
    overlap = flat @ flat.T  # (N, N)
    area = flat.sum(dim=1)
    iou = overlap / (area[:, None] + area - overlap).clamp(min=1)
    rival = ((iou > threshold) & (labels[order][:, None] == labels[order])).triu(diagonal=1).cpu()
    keep = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):  # greedy: what is kept removes all its weaker rivals
        if keep[i]:
            keep &= ~rival[i]
    return order[keep.to(order.device)]


# -------------------------------------------------------------------------------------------------------------- model


class CondInst(nn.Module):
    """The whole model, in torchvision's interface.

    num_classes: K; bottom: arguments of BottomBranch; mask_head: of DynamicMaskHead; factor: upsampling of the mask
    logits, 1, 2 or 4; scale: unit of the relative coordinates, in strides of the instance's level; mask_limit:
    sampled locations per image; sampling: "score" or "random"; semantic: add the semantic task in training; nms:
    by "box" or by "mask" (then `mask_candidates` masks are drawn first); all else goes to FCOS.

    forward(images, targets) in training -> FCOS's losses and "loss_mask" (and "loss_semantic");
    forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores", "masks" (N, H, W) bool}].
    Target masks are full-size, or sampled at the mask stride (bottom stride / factor) beside `centers`.
    Source: condinst:eq-1, condinst:eq-2, condinst:inference.
    """

    scales: Tensor

    def __init__(
        self,
        num_classes: int = 80,
        bottom: dict[str, Any] | None = None,
        mask_head: dict[str, Any] | None = None,
        factor: Literal[1, 2, 4] = 2,
        scale: float = 8,
        mask_limit: int = 64,
        sampling: Literal["score", "random"] = "score",
        semantic: bool = False,
        nms: Literal["box", "mask"] = "box",
        mask_candidates: int = 300,
        channels: int = 256,
        center: Literal["box", "mass"] = "mass",
        threshold_product: bool = True,
        head: dict[str, Any] | None = None,
        **fcos: Any,
    ) -> None:
        super().__init__()
        self.bottom = BottomBranch(channels, **(bottom or {}))
        self.mask_head = DynamicMaskHead(self.bottom.out_channels, **(mask_head or {}))
        head = {**(head or {}), "top_channels": self.mask_head.num_parameters}
        self.fcos = FCOS(
            num_classes, channels=channels, center=center, threshold_product=threshold_product, head=head, **fcos
        )
        self.semantic = SemanticHead(channels, num_classes) if semantic else None
        levels = self.fcos.levels[self.bottom.first :]
        if len(self.bottom.refine) > len(levels):
            raise ValueError(f"the bottom branch takes {len(self.bottom.refine)} levels of {len(levels)}")
        self.stride = 2 ** levels[0]
        if factor not in (1, 2, 4) or self.stride % factor:
            raise ValueError(f"factor must be 1, 2 or 4 and divide the bottom branch's stride {self.stride}: {factor}")
        for name, value, choices in (("sampling", sampling, ("score", "random")), ("nms", nms, ("box", "mask"))):
            if value not in choices:
                raise ValueError(f"{name} must be {choices[0]!r} or {choices[1]!r}, not {value!r}")
        self.factor, self.mask_limit, self.sampling = factor, mask_limit, sampling
        self.nms, self.mask_candidates = nms, mask_candidates
        units = [scale * stride for stride in self.fcos.strides]
        self.register_buffer("scales", torch.tensor(units, dtype=torch.float32), persistent=False)

    @property
    def mask_stride(self) -> int:
        """Pixels between two cells of the predicted masks: 4 by default."""
        return self.stride // self.factor

    @property
    def semantic_stride(self) -> int | None:
        """Pixels between two cells of the semantic task's labels; None without that task."""
        return self.stride if self.semantic is not None else None

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.fcos.mean, self.fcos.std, self.fcos.divisor)
        pyramid, points, outputs = self.fcos.run(batch)
        features = self.bottom(pyramid)  # (B, C, H, W)
        if self.training:
            check_targets(images, targets, "masks")
            return self.losses(pyramid, points, outputs, features, targets or ())
        results = []
        for i, (size, output_size) in enumerate(batch.with_output(output_sizes)):
            found = self.detect(points, outputs, features, i)
            boxes, keep = to_output_size(found.boxes, size, output_size)
            found = found.pick(keep)
            logits = self.mask_logits(points, outputs, features, i, found.location)
            masks = resize_masks(logits, self.stride, size, output_size, self.factor)
            results.append({"boxes": boxes[keep], "labels": found.labels, "scores": found.scores, "masks": masks})
        return results

    def losses(
        self, pyramid: list[Tensor], points: Points, outputs: Outputs, features: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """All losses by name; the overall loss is their plain sum. Source: condinst:eq-1 (lambda is 1)."""
        assignment = self.fcos.assign(points, targets)
        losses = fcos_losses(outputs, assignment, self.fcos.giou_smooth)
        losses["loss_box"] = losses["loss_box"] + self.fcos.idle(pyramid)
        losses["loss_mask"] = self.mask_loss(points, outputs, assignment, features, targets)
        if self.semantic is not None:
            logits = self.semantic(pyramid[self.bottom.first])
            size = (logits.shape[-2], logits.shape[-1])
            losses["loss_semantic"] = semantic_loss(logits, semantic_targets(targets, self.stride, size))
        return losses

    def mask_loss(
        self, points: Points, outputs: Outputs, assignment: Assignment, features: Tensor, targets: Sequence[Target]
    ) -> Tensor:
        """Mean dice loss of the sampled positive locations; 0, with gradients, where there is none.

        Source: condinst:eq-2.
        """
        index, positive = sample_locations(outputs, assignment, self.mask_limit, self.sampling)  # (B, S)
        size = (features.shape[-2] * self.factor, features.shape[-1] * self.factor)
        truth = sampled_masks(targets, self.mask_stride, size)  # (B, M, h, w)
        total = features.sum() * 0  # the bottom branch has a gradient even where the mask head reads no features
        for i, chosen in enumerate(index):
            logits = self.mask_logits(points, outputs, features, i, chosen)
            scores = aligned_upsample(logits, self.factor).sigmoid()  # (S, h, w)
            dice = dice_loss(scores, truth[i, assignment.matched[i, chosen]])
            total = total + (dice * positive[i]).sum()
        return total / normaliser(positive.sum().float())

    def mask_logits(self, points: Points, outputs: Outputs, features: Tensor, image: int, location: Tensor) -> Tensor:
        """Mask logits (N, H, W), at the bottom branch's stride, of the instances at N locations of one image."""
        theta = self.fcos.head.top_at(outputs, points, image, location)  # (N, P)
        scales = self.scales[points.level[location]]
        return self.mask_head(features[image], theta, points.xy[location], scales, self.stride)

    def detect(self, points: Points, outputs: Outputs, features: Tensor, image: int) -> Instances:
        """Detections of one image of the batch after NMS by box or by mask."""
        if self.nms == "box":
            return self.fcos.detect(points, outputs, image)
        found = keep_best(self.fcos.propose(points, outputs, image), self.mask_candidates)
        masks = aligned_upsample(self.mask_logits(points, outputs, features, image, found.location), self.factor)
        keep = mask_nms(masks > 0, found.scores, found.labels, self.fcos.nms_threshold)
        return keep_best(found.pick(keep), self.fcos.detections)
