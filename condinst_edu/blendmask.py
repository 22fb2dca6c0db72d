"""BlendMask: every instance mixes a few bases, maps that all instances share, with an attention map of its own.

Order of the data: images -> FCOS with a top module that gives each location its attention -> the bases -> (training)
the objects' boxes, (inference) the detected boxes, cut out of the bases by RoIAlign -> the attention, resized to these
crops and made to sum to 1 over the bases, weighs them -> one mask per box -> pasted into the image. With attention of
one cell this is YOLACT's weighted sum, with one-hot attention FCIS's assembling. FCOS slides, part BlendMask; what they
leave out is as in the official code, unless said.

Legend: B images, L locations, R positive ones, M objects of an image, N instances of the batch, K bases, H, W map of
the bases, a cells along a side of the attention, m cells along a side of a mask.
"""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from condinst_edu.condinst import semantic_targets
from condinst_edu.fcos import (
    FCOS,
    Assignment,
    Outputs,
    Points,
    centerness,
    fcos_losses,
    to_output_size,
)
from condinst_edu.layers.blocks import Norm, conv_block
from condinst_edu.layers.images import Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import normaliser

# -------------------------------------------------------------------------------------------------------------- bases


class BasisModule(nn.Module):
    """The bases: K maps for all instances, from the pyramid's finest levels, at twice the finest one's resolution.

    in_channels: of the pyramid; num_bases: K; num_levels: how many levels it takes, from the finest on; channels: of
    its convolutions; convs: 3x3 convolutions between the sum and the upsampling (2 in the real-time models); first:
    levels it passes over (1 in a pyramid that has P2 for somebody else).
    forward: the pyramid -> (B, K, H, W) without activation. Its upsampling has half-pixel centres, as RoIAlign has.
    Source: slides:blendmask-blender (YOLACT's ProtoNet on a sum of levels, as configured in the official code).
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_bases: int = 4,
        num_levels: int = 3,
        channels: int = 128,
        convs: int = 3,
        norm: Norm = "bn",
        first: int = 0,
    ) -> None:
        super().__init__()
        if num_levels < 1 or num_bases < 1:
            raise ValueError(f"there is at least one level and one basis, not {num_levels} and {num_bases}")
        self.num_bases, self.num_levels, self.first = num_bases, num_levels, first
        self.refine = nn.ModuleList(conv_block(in_channels, channels, norm=norm) for _ in range(num_levels))
        self.tower = nn.Sequential(
            *(conv_block(channels, channels, norm=norm) for _ in range(convs)),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            conv_block(channels, channels, norm=norm),
            nn.Conv2d(channels, num_bases, 1),
        )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        levels = pyramid[self.first :]
        total = self.refine[0](levels[0])
        for x, refine in zip(levels[1:], self.refine[1:], strict=False):
            total = total + F.interpolate(refine(x), total.shape[-2:], mode="bilinear")
        return self.tower(total)


class DeepLabBases(nn.Module):
    """The same bases from a decoder as DeepLabV3+ has it: wide context of a coarse level, detail of the finest.

    in_channels, num_bases, channels, first: as of BasisModule; num_levels: the last of them is the coarse one; rates:
    of the 3x3 convolutions that read the context, in its cells; detail: channels taken from the finest level.
    forward: the pyramid -> (B, K, H, W), twice the finest level's resolution. No published model has it.
    Source: slides:blendmask-blender ("dense bottom module").
    """

    def __init__(
        self,
        in_channels: int = 256,
        num_bases: int = 4,
        num_levels: int = 3,
        channels: int = 128,
        rates: Sequence[int] = (6, 12, 18),
        detail: int = 48,
        first: int = 0,
    ) -> None:
        super().__init__()
        if num_levels < 1 or num_bases < 1:
            raise ValueError(f"there is at least one level and one basis, not {num_levels} and {num_bases}")
        self.num_bases, self.num_levels, self.first = num_bases, num_levels, first
        self.context = nn.ModuleList([conv_block(in_channels, channels, 1)])
        for rate in rates:
            conv = nn.Conv2d(in_channels, channels, 3, padding=rate, dilation=rate, bias=False)
            self.context.append(nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
        self.whole = nn.Conv2d(in_channels, channels, 1)  # of the whole map: one cell, for which there is no norm
        self.join = conv_block((len(rates) + 2) * channels, channels, 1)
        self.detail = conv_block(in_channels, detail, 1)
        self.tower = nn.Sequential(
            conv_block(channels + detail, channels),
            conv_block(channels, channels),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(channels, num_bases, 1),
        )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        fine, coarse = pyramid[self.first], pyramid[self.first + self.num_levels - 1]
        whole = F.relu(self.whole(coarse.mean(dim=(2, 3), keepdim=True))).expand(-1, -1, *coarse.shape[-2:])
        joined = self.join(torch.cat([*(branch(coarse) for branch in self.context), whole], dim=1))
        context = F.interpolate(joined, fine.shape[-2:], mode="bilinear")
        return self.tower(torch.cat([context, self.detail(fine)], dim=1))


# ------------------------------------------------------------------------------------------------------------ blender


def crop_bases(bases: Tensor, boxes: Sequence[Tensor], stride: float, size: int = 56) -> Tensor:
    """The bases within each box, by RoIAlign with one sample in each cell.

    bases (B, K, H, W) at `stride` pixels; boxes: of each image (N_i, 4) xyxy in pixels. Returns (N, K, size, size), the
    images' boxes one after the other. Source: slides:blendmask-blender.
    """
    bases = bases if bases.dtype == torch.float64 else bases.float()
    boxes = [box.to(bases) for box in boxes]
    return roi_align(bases, boxes, size, spatial_scale=1 / stride, sampling_ratio=1, aligned=True)


def merge_bases(
    crops: Tensor, attention: Tensor, softmax: bool = True, mode: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Sum of the bases' crops, each weighted by its attention, resized to the crops: (N, K, m, m) -> (N, m, m) logits.

    attention (N, K, a, a); softmax: over the bases, after the resizing, so that the weights of a cell sum to 1.
    Source: slides:blendmask-blender.
    """
    attention = F.interpolate(attention.to(crops), crops.shape[-2:], mode=mode)  # (N, K, m, m)
    if softmax:
        attention = attention.softmax(dim=1)
    return (crops * attention).sum(dim=1)


def blend(
    bases: Tensor,
    boxes: Sequence[Tensor],
    attention: Tensor,
    stride: float,
    size: int = 56,
    softmax: bool = True,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Tensor:
    """Mask logits (N, size, size) of all boxes, each over its own box: the blender.

    bases (B, K, H, W) at `stride` pixels; boxes: of each image (N_i, 4) xyxy in pixels; attention (N, K, a, a) of all
    boxes in their order. Attention of 1x1 without softmax is YOLACT's vector of weights; one-hot attention, resized by
    "nearest" and without softmax, copies a basis into each part of the box, as FCIS does.
    Source: slides:blendmask-blender, slides:yolact-vector, slides:fcis.
    """
    return merge_bases(crop_bases(bases, boxes, stride, size), attention, softmax, mode)


# --------------------------------------------------------------------------------------------------- masks and boxes


def crop_masks(masks: Tensor, boxes: Tensor, size: int = 56) -> Tensor:
    """Target masks within their boxes: masks (M, H, W) of an image, boxes (M, 4) xyxy in its pixels -> (M, size, size).

    bool: a cell is 1 where at least half of what it covers is (RoIAlign with as many samples as a cell has pixels).
    """
    rois = torch.cat([torch.arange(len(boxes), device=boxes.device)[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[:, None].to(boxes), rois, size, sampling_ratio=-1, aligned=True)[:, 0] >= 0.5


def paste_masks(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Binary masks (N, *size) of an image from scores (N, m, m) in [0, 1] over boxes (N, 4) xyxy in its pixels.

    A pixel's score is read at its centre, bilinearly between the cells' centres, with 0 outside the box; the mask is
    where it is at least 0.5. Only pixels whose centre lies in the box can be, and only these are worked out.
    """
    masks = torch.zeros(len(scores), *size, dtype=torch.bool, device=scores.device)
    for mask, score, (x0, y0, x1, y1) in zip(masks, scores, boxes.tolist(), strict=True):
        rows, upsample_rows = _read_line(y0, y1, size[0], score)
        columns, upsample_columns = _read_line(x0, x1, size[1], score)
        mask[rows, columns] = upsample_rows @ score @ upsample_columns.mT >= 0.5
    return masks


def _read_line(start: float, end: float, limit: int, score: Tensor) -> tuple[slice, Tensor]:
    """The pixels of a line 0..limit with centres from start to end, and their weights (pixels, m) on its m cells."""
    cells = score.shape[-1]
    pixels = slice(max(ceil(start - 0.5), 0), max(min(floor(end - 0.5) + 1, limit), 0))
    centers = torch.arange(pixels.start, max(pixels.stop, pixels.start), device=score.device) + 0.5
    position = (centers.to(score) - start) / (end - start) * cells - 0.5
    distance = position[:, None] - torch.arange(cells, device=score.device)
    return pixels, (1 - distance.abs()).clamp(min=0)


# -------------------------------------------------------------------------------------------------------------- model


class BlendMask(nn.Module):
    """The whole model, in torchvision's interface.

    num_classes: K; basis_module: "proto" (BasisModule) or "deeplab" (DeepLabBases); bases: its arguments; attention:
    cells along a side of the attention; size: cells along a side of a mask; semantic: add the semantic task in
    training; semantic_weight: of its loss; all else goes to FCOS.

    forward(images, targets) in training -> FCOS's losses and "loss_mask" (and "loss_semantic");
    forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores", "masks" (N, H, W) bool}].
    Target masks are full-size.
    Source: slides:blendmask-blender.
    """

    def __init__(
        self,
        num_classes: int = 80,
        basis_module: Literal["proto", "deeplab"] = "proto",
        bases: dict[str, Any] | None = None,
        attention: int = 14,
        size: int = 56,
        semantic: bool = True,
        semantic_weight: float = 0.3,
        channels: int = 256,
        threshold_product: bool = True,
        head: dict[str, Any] | None = None,
        **fcos: Any,
    ) -> None:
        super().__init__()
        modules: dict[str, type[BasisModule | DeepLabBases]] = {"proto": BasisModule, "deeplab": DeepLabBases}
        if basis_module not in modules:
            raise ValueError(f"basis_module must be 'proto' or 'deeplab', not {basis_module!r}")
        if not 1 <= attention <= size:
            raise ValueError(f"a mask has a cell or more, and the attention no more than it: {attention} of {size}")
        self.bases = modules[basis_module](channels, **(bases or {}))
        self.attention = (self.bases.num_bases, attention, attention)
        head = {"learned_scales": False, **(head or {}), "top_channels": self.bases.num_bases * attention**2}
        self.fcos = FCOS(num_classes, channels=channels, threshold_product=threshold_product, head=head, **fcos)
        levels = self.fcos.levels[self.bases.first :]
        if self.bases.num_levels > len(levels):
            raise ValueError(f"the bases take {self.bases.num_levels} levels of {len(levels)}")
        self.semantic = semantic_head(channels, num_classes) if semantic else None
        self.semantic_weight, self.size = semantic_weight, size
        self.stride = 2 ** levels[0] // 2

    @property
    def semantic_stride(self) -> int | None:
        """Pixels between two cells of the semantic task's labels; None without that task."""
        return 2 * self.stride if self.semantic is not None else None

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.fcos.mean, self.fcos.std, self.fcos.divisor)
        pyramid, points, outputs = self.fcos.run(batch)
        bases = self.bases(pyramid)  # (B, K, H, W)
        if self.training:
            # Without `centers`, by which other models know masks that are sampled already, they must be full-size.
            targets = [{k: v for k, v in target.items() if k != "centers"} for target in targets or ()]
            check_targets(images, targets, "masks")
            return self.losses(pyramid, points, outputs, bases, targets)
        results = []
        for i, (size, output_size) in enumerate(batch.with_output(output_sizes)):
            found = self.fcos.detect(points, outputs, i)
            boxes, keep = to_output_size(found.boxes, size, output_size)
            found, boxes = found.pick(keep), boxes[keep]
            attention = self.attention_at(points, outputs, i, found.location)
            scores = blend(bases[i : i + 1], [found.boxes], attention, self.stride, self.size).sigmoid()
            # Official: the crop is of the box as predicted, and it is pasted into the box clipped to the image.
            masks = paste_masks(scores, boxes, output_size)
            results.append({"boxes": boxes, "labels": found.labels, "scores": found.scores, "masks": masks})
        return results

    def attention_at(self, points: Points, outputs: Outputs, image: int, location: Tensor) -> Tensor:
        """Attention (N, K, a, a) of the instances at N locations of one image: the top module's output."""
        return self.fcos.head.top_at(outputs, points, image, location).unflatten(1, self.attention)

    def losses(
        self, pyramid: list[Tensor], points: Points, outputs: Outputs, bases: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """All losses by name; the overall loss is their plain sum."""
        assignment = self.fcos.assign(points, targets)
        losses = fcos_losses(outputs, assignment, self.fcos.giou_smooth)
        losses["loss_box"] = losses["loss_box"] + self.fcos.idle(pyramid)
        losses["loss_mask"] = self.mask_loss(points, outputs, assignment, bases, targets)
        if self.semantic is not None:
            logits = self.semantic(pyramid[self.bases.first])  # (B, num_classes + 1, h, w)
            size = (logits.shape[-2], logits.shape[-1])
            labels = semantic_targets(targets, 2 * self.stride, size)
            losses["loss_semantic"] = self.semantic_weight * F.cross_entropy(logits, labels)
        return losses

    def mask_loss(
        self, points: Points, outputs: Outputs, assignment: Assignment, bases: Tensor, targets: Sequence[Target]
    ) -> Tensor:
        """Binary cross-entropy of all positive locations' masks over their objects' boxes.

        Each location's mean is weighted by its centre-ness target, their sum divided by the weights' sum.
        """
        # A crop serves all locations of its object.
        crops = crop_bases(bases, [target["boxes"] for target in targets], self.stride, self.size)
        owner, attention, truth, weight = [], [], [], []
        before = 0  # objects of earlier images
        for i, (target, labels) in enumerate(zip(targets, assignment.labels, strict=True)):
            location = labels.nonzero().flatten()
            matched = assignment.matched[i, location]
            owner.append(before + matched)
            attention.append(self.attention_at(points, outputs, i, location))
            truth.append(crop_masks(target["masks"], target["boxes"], self.size)[matched])
            weight.append(centerness(assignment.distances[i, location]))
            before += len(target["boxes"])
        logits = merge_bases(crops[torch.cat(owner)], torch.cat(attention))  # (R, m, m)
        entropy = F.binary_cross_entropy_with_logits(logits, torch.cat(truth).to(logits), reduction="none")
        total = torch.cat(weight).to(entropy)
        return (entropy.mean(dim=(1, 2)) * total).sum() / normaliser(total.sum(), least=1e-6)


def semantic_head(in_channels: int, num_classes: int, channels: int = 128) -> nn.Sequential:
    """Auxiliary task of training: logits (B, num_classes + 1, H, W) of the finest level's cells; 0 is no object."""
    blocks = [conv_block(in_channels, channels), conv_block(channels, channels)]
    return nn.Sequential(*blocks, nn.Conv2d(channels, num_classes + 1, 1))
