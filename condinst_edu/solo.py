"""SOLO: which object a pixel belongs to is a class of its own, the cell of a grid that the object's centre falls into.

Order of the data: images -> one padded batch -> backbone -> FPN -> each level at the stride of its grid -> the category
branch classifies the S x S cells, the mask branch draws S * S masks, one for each cell -> (training) the cells that
objects claim, focal and dice loss, (inference) the cells that score, their masks, Matrix NMS, masks at the output size.
No box is predicted. Decoupled SOLO draws S masks for the columns and S for the rows; a cell's is their product.
Tutorial slides, "SOLO"; what they leave out is as in the official code and mmdetection's.

Legend: B images, M objects of an image, S cells along a side of a grid, K classes, C channels, P positive cells of a
level, N candidates or detections of an image, H, W map. Cell (i, j) is row i, column j, and k = i * S + j.
"""

from collections.abc import Mapping, Sequence
from math import gcd, log
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.condinst import mask_nms
from condinst_edu.coordinates import coordconv
from condinst_edu.layers.backbones import Backbone, build_backbone
from condinst_edu.layers.fpn import FPN
from condinst_edu.layers.images import Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import dice_loss, normaliser, processes
from condinst_edu.layers.masks import exact_centers, mask_boxes

Maps = tuple[Tensor, ...]


class Outputs(NamedTuple):
    """Raw outputs, for each level: class logits (B, K, S, S); maps of mask logits at half the grid's stride.

    The maps of a level are (B, S * S, H, W), or, decoupled, (B, S, H, W) of the columns and as many of the rows.
    """

    logits: list[Tensor]
    maps: list[Maps]


class Cells(NamedTuple):
    """Cells of one image: level, k on its grid, label from 1 and score, (N,) each."""

    level: Tensor
    k: Tensor
    labels: Tensor
    scores: Tensor

    def pick(self, index: Tensor) -> "Cells":
        """Those at the indices, or where the mask is True."""
        return Cells(*(field[index] for field in self))


# ----------------------------------------------------------------------------------------------------------------- head


def tower(in_channels: int, channels: int, convs: int) -> nn.Sequential:
    """`convs` 3x3 convolutions without bias, each with group norm (32 groups, or the largest divisor) and ReLU."""
    layers: list[nn.Module] = []
    for before in (in_channels, *[channels] * (convs - 1)):
        conv = nn.Conv2d(before, channels, 3, padding=1, bias=False)
        layers += [conv, nn.GroupNorm(gcd(32, channels), channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def resize(x: Tensor, size: Size) -> Tensor:
    """Maps (B, C, H, W) or (N, H, W) at another size: bilinear, half-pixel centres, not smoothed where they shrink."""
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear") if x.dim() == 4 else resize(x[:, None], size)[:, 0]


class SOLOHead(nn.Module):
    """Category branch and mask branch, shared by all levels but for each level's last mask convolution.

    in_channels: of the pyramid; num_classes: K; grids: S of each level; channels, convs: of a branch; coordinates: feed
    the mask branch CoordConv's maps, once, beside the features. forward: a map for each grid -> Outputs.
    Source: slides:solo-grid, slides:solo-coordconv.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        grids: Sequence[int],
        channels: int = 256,
        convs: int = 7,
        coordinates: bool = True,
    ) -> None:
        super().__init__()
        self.grids, self.coordinates = tuple(grids), coordinates
        self.add_mask_branch(in_channels, channels, convs)
        self.class_tower = tower(in_channels, channels, convs)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:  # at first everything is background with probability 0.99
                    nn.init.constant_(module.bias, -log(99))

    def add_mask_branch(self, in_channels: int, channels: int, convs: int) -> None:
        """The mask branch's layers: one 1x1 convolution for each grid, which gives a map to each cell."""
        self.mask_tower = tower(in_channels + 2 * self.coordinates, channels, convs)
        self.cell_maps = nn.ModuleList(nn.Conv2d(channels, s * s, 1) for s in self.grids)

    def forward(self, features: Sequence[Tensor]) -> Outputs:
        outputs = Outputs([], [])
        for level, x in enumerate(features):
            grid = self.grids[level]
            outputs.logits.append(self.class_logits(self.class_tower(resize(x, (grid, grid)))))
            outputs.maps.append(self.draw(x, level))
        return outputs

    def draw(self, x: Tensor, level: int) -> Maps:
        """Mask logits (B, S * S, 2 H, 2 W) of all cells of a level from its features (B, C, H, W)."""
        return (self.cell_maps[level](enlarge(self.mask_tower(self.with_coordinates(x)))),)

    def with_coordinates(self, x: Tensor, axes: Sequence[int] = (0, 1)) -> Tensor:
        """Features and, behind them, the maps of x (axis 0), y (axis 1) or both: (B, C + len(axes), H, W)."""
        if not self.coordinates:
            return x
        maps = coordconv((x.shape[-2], x.shape[-1]), x.device)[list(axes)].to(x.dtype)
        return torch.cat([x, maps.expand(len(x), -1, -1, -1)], dim=1)

    def cell_masks(self, maps: Maps, image: Tensor | int, k: Tensor, size: Size | None = None) -> Tensor:
        """Masks (N, H, W), as probabilities, of cells k (N,) of one level and one or more images.

        size: (height, width) that the maps are resized to, behind the sigmoid. Source: slides:solo-grid.
        """
        return probabilities(maps[0][image, k], size)


class DecoupledHead(SOLOHead):
    """Two mask branches: S maps for the columns, which read x alone, S for the rows, which read y; further as SOLOHead.

    light: one branch with both coordinates for both. Source: slides:decoupled-solo.
    """

    def __init__(self, *args: Any, light: bool = False, **options: Any) -> None:
        self.light = light
        super().__init__(*args, **options)

    def add_mask_branch(self, in_channels: int, channels: int, convs: int) -> None:
        """The branches' layers: a 3x3 convolution for each grid and direction."""
        if self.light:
            self.mask_tower = tower(in_channels + 2 * self.coordinates, channels, convs)
        else:
            self.column_tower = tower(in_channels + self.coordinates, channels, convs)
            self.row_tower = tower(in_channels + self.coordinates, channels, convs)
        self.column_maps = nn.ModuleList(nn.Conv2d(channels, s, 3, padding=1) for s in self.grids)
        self.row_maps = nn.ModuleList(nn.Conv2d(channels, s, 3, padding=1) for s in self.grids)

    def draw(self, x: Tensor, level: int) -> Maps:
        """Mask logits (B, S, 2 H, 2 W) of all columns, then those of all rows, from features (B, C, H, W)."""
        if self.light:
            columns = rows = enlarge(self.mask_tower(self.with_coordinates(x)))
        else:
            columns = enlarge(self.column_tower(self.with_coordinates(x, [0])))
            rows = enlarge(self.row_tower(self.with_coordinates(x, [1])))
        return self.column_maps[level](columns), self.row_maps[level](rows)

    def cell_masks(self, maps: Maps, image: Tensor | int, k: Tensor, size: Size | None = None) -> Tensor:
        """Masks as of SOLOHead: p(k) = p(i) p(j), the product of a row's and a column's probabilities.

        Source: slides:decoupled-solo.
        """
        columns, rows = maps
        grid = rows.shape[1]
        return probabilities(columns[image, k % grid], size) * probabilities(rows[image, k // grid], size)


def enlarge(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) at twice their size."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def probabilities(logits: Tensor, size: Size | None) -> Tensor:
    """Sigmoid of mask logits (N, H, W) in float32 at least, then resized if a size is given."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    return scores if size is None else resize(scores, size)


# ------------------------------------------------------------------------------------------------------------ targets


def grid_cells(points: Tensor, size: Size, grid: int) -> Tensor:
    """Cells (j, i), not clipped to the grid, in which points (..., 2), (x, y) in pixels, lie: (..., 2) int64.

    size: (height, width) of the padded input, which the grid is laid over. In float32 and rounded towards 0, as in
    mmdetection; so a point on a border may come to lie in the cell before.
    """
    extent = points.new_tensor([size[1], size[0]])
    return torch.div(points / extent, points.new_tensor(1 / grid), rounding_mode="trunc").long()


def claimed_cells(centers: Tensor, boxes: Tensor, size: Size, grid: int, sigma: float = 0.2) -> Tensor:
    """Cells that each object claims: those its centre region touches, at most 3x3 around the centre's: (M, S, S) bool.

    centers (M, 2), mass centres; boxes (M, 4) xyxy, in pixels, whose size times sigma is that of the centre region.
    Source: slides:solo-grid.
    """
    half = 0.5 * (boxes[:, 2:] - boxes[:, :2]) * sigma
    middle = grid_cells(centers, size, grid)  # (M, 2)
    first = torch.maximum(grid_cells(centers - half, size, grid).clamp(min=0), middle - 1)
    last = torch.minimum(grid_cells(centers + half, size, grid).clamp(max=grid - 1), middle + 1)
    cell = torch.arange(grid, device=boxes.device)
    inside = (cell >= first[..., None]) & (cell <= last[..., None])  # (M, 2, S)
    return inside[:, 1, :, None] & inside[:, 0, None, :]


def assign_cells(
    centers: Tensor, target: Target, size: Size, grid: int, scales: tuple[float, float], sigma: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Label (S * S,) of each cell of a level, 0 for background, and the object (S * S,) that it answers for.

    An object belongs to a level if the square root of its box's area is within `scales`, both ends included; of several
    that claim a cell, the last has it. Objects with an empty mask (and centre NaN) claim none.
    Source: slides:solo-grid, slides:solo-levels.
    """
    boxes, labels = target["boxes"].float(), target["labels"]
    length = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    valid = (length >= scales[0]) & (length <= scales[1]) & ~centers.isnan().any(dim=1)
    claimed = claimed_cells(centers.nan_to_num(), boxes, size, grid, sigma) & valid[:, None, None]
    number = torch.arange(1, len(labels) + 1, device=labels.device)  # of the object, 0 for none
    owner = F.pad(claimed.flatten(1) * number[:, None], (0, 0, 1, 0)).amax(dim=0)  # (S * S,)
    return F.pad(labels, (1, 0))[owner], (owner - 1).clamp(min=0)


def mask_targets(masks: Tensor, stride: int, size: Size) -> Tensor:
    """Masks (M, H, W) bool at an even stride, padded to (M, *size).

    A cell is set where two or more of the four pixels in its middle are. This is what OpenCV's bilinear filter makes of
    masks of 0 and 1, in the official code.
    """
    height, width = masks.shape[1:]
    padded = F.pad(masks, (0, size[1] * stride - width, 0, size[0] * stride - height))
    before, after = slice(stride // 2 - 1, None, stride), slice(stride // 2, None, stride)
    rows = padded[:, before].byte() + padded[:, after]
    return rows[:, :, before] + rows[:, :, after] >= 2


# ---------------------------------------------------------------------------------------------------------- inference


def points_nms(scores: Tensor) -> Tensor:
    """Scores (B, K, S, S) that are no less than those above, on the left and above left; the others become 0."""
    highest = F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


def matrix_nms(
    masks: Tensor,
    scores: Tensor,
    labels: Tensor,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
) -> Tensor:
    """Scores (N,) lowered by how much better masks of the same class overlap, all at once.

    masks (N, H, W) bool; scores (N,), falling; labels (N,). With the IoU of j and a better i, and c_i the largest IoU
    of i with one better still, j is multiplied by the smallest f(IoU) / f(c_i); f(x) is exp(-sigma x^2), or 1 - x.
    What is itself a copy of a better mask (c_i = 1) lowers nothing; official, linear: 0 / 0, NaN for an exact copy.
    """
    flat = masks.flatten(1).to(scores.dtype)
    overlap, area = flat @ flat.T, flat.sum(dim=1)
    iou = overlap / (area[:, None] + area - overlap).clamp(min=1)
    iou = (iou * (labels[:, None] == labels)).triu(diagonal=1)  # (N, N): row i, better, against column j
    compensate = iou.amax(dim=0)[:, None] if len(iou) else iou
    if kernel == "gaussian":
        decay = torch.exp(-sigma * iou.square()) / torch.exp(-sigma * compensate.square())
    else:
        decay = ((1 - iou) / (1 - compensate)).masked_fill(compensate == 1, torch.inf)
    return scores * decay.amin(dim=0) if len(iou) else scores


# -------------------------------------------------------------------------------------------------------------- model


class SOLO(nn.Module):
    """The whole model, in torchvision's interface.

    num_classes: K; backbone, backbone_options: see `build_backbone`; channels: of the pyramid; levels: of the pyramid,
    one for each grid (6: every second cell of P5's last map); strides: in pixels, that these are brought to; grids: S;
    ranges: smallest and largest object of a grid, square root of its box's area, in pixels; sigma: see `claimed_cells`;
    head: further arguments of the head; mask_weight: of the dice loss; score_threshold: of a cell's class probability;
    candidates: masks that enter NMS; nms: "matrix" (with kernel, nms_sigma, and the threshold min_score on what is
    left of a score) or "mask" (greedy, nms_threshold on the IoU); detections: per image at most; mean, std: of RGB.

    forward(images, targets) in training -> {"loss_class", "loss_mask"}; forward(images, output_sizes=None) in
    evaluation -> [{"boxes", "labels", "scores", "masks" (N, H, W) bool}]; the boxes are drawn around the masks.
    Target masks are full-size; target boxes tell only how large an object is.
    Source: slides:solo-grid, slides:solo-grid-number.
    """

    head_class: type[SOLOHead] = SOLOHead

    def __init__(
        self,
        num_classes: int = 80,
        backbone: str = "resnet50",
        backbone_options: Mapping[str, Any] | None = None,
        channels: int = 256,
        levels: Sequence[int] = (2, 3, 4, 5, 6),
        strides: Sequence[int] = (8, 8, 16, 32, 32),
        grids: Sequence[int] = (40, 36, 24, 16, 12),
        ranges: Sequence[tuple[float, float]] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048)),
        sigma: float = 0.2,
        head: Mapping[str, Any] | None = None,
        mask_weight: float = 3.0,
        score_threshold: float = 0.1,
        candidates: int = 500,
        nms: Literal["matrix", "mask"] = "matrix",
        kernel: Literal["gaussian", "linear"] = "gaussian",
        nms_sigma: float = 2.0,
        nms_threshold: float = 0.5,
        min_score: float = 0.05,
        detections: int = 100,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if not len(levels) == len(strides) == len(grids) == len(ranges) > 0:
            raise ValueError("levels, strides, grids and ranges must be equally many, and at least one")
        if any(stride % 4 for stride in strides):
            raise ValueError(f"strides must be multiples of 4, for masks at half of them: {tuple(strides)}")
        for name, value, choices in (("nms", nms, ("matrix", "mask")), ("kernel", kernel, ("gaussian", "linear"))):
            if value not in choices:
                raise ValueError(f"{name} must be {choices[0]!r} or {choices[1]!r}, not {value!r}")
        self.backbone: Backbone = build_backbone(backbone, **(backbone_options or {}))
        top = max(self.backbone.channels)
        if not set(levels) <= {*self.backbone.channels, top + 1}:
            raise ValueError(f"levels must be among {[*self.backbone.channels, top + 1]}, not {tuple(levels)}")
        self.levels, self.strides = tuple(levels), tuple(strides)
        self.fpn = FPN(self.backbone.channels, channels, range(min(*levels, top), top + 1))
        self.head = self.head_class(channels, num_classes, grids, **(head or {}))
        self.ranges, self.sigma, self.mask_weight = [(low, high) for low, high in ranges], sigma, mask_weight
        self.score_threshold, self.candidates, self.min_score = score_threshold, candidates, min_score
        self.nms, self.kernel, self.nms_sigma, self.nms_threshold = nms, kernel, nms_sigma, nms_threshold
        self.detections = detections
        self.divisor = max(32, 2**top)
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.mean, self.std, self.divisor)
        padded = (batch.images.shape[-2], batch.images.shape[-1])
        pyramid = self.pyramid(batch.images)
        outputs = self.head(self.split(pyramid, padded))
        if self.training:
            targets = [{k: v for k, v in target.items() if k != "centers"} for target in targets or ()]
            check_targets(images, targets, "masks")  # full-size ones
            losses = self.losses(outputs, targets, padded)
            return {**losses, "loss_class": losses["loss_class"] + self.idle(pyramid)}
        results = []
        for i, (size, output_size) in enumerate(batch.with_output(output_sizes)):
            found, soft = self.detect(outputs, i)
            masks = self.to_output_size(soft, padded, size, output_size)
            results.append({"boxes": mask_boxes(masks), "labels": found.labels, "scores": found.scores, "masks": masks})
        return results

    def pyramid(self, images: Tensor) -> dict[int, Tensor]:
        """Maps P_l (B, C, H / 2^l, W / 2^l) of a batch by level; one above the backbone's last is cut from the last."""
        features = self.backbone(images)
        maps = dict(zip(self.fpn.inner_levels, self.fpn(features), strict=True))
        top = max(maps)
        return {**maps, top + 1: maps[top][:, :, ::2, ::2]}

    def split(self, pyramid: Mapping[int, Tensor], size: Size) -> list[Tensor]:
        """The map of each grid at its stride; size: (height, width) of the input. Source: slides:solo-levels."""
        pairs = zip(self.levels, self.strides, strict=True)
        return [resize(pyramid[level], (size[0] // stride, size[1] // stride)) for level, stride in pairs]

    def idle(self, pyramid: Mapping[int, Tensor]) -> Any:
        """0, through which levels without a grid get a gradient of 0: processes wait for every parameter's."""
        return 0 * sum(x.sum() for level, x in pyramid.items() if level not in self.levels)

    def losses(self, outputs: Outputs, targets: Sequence[Target], size: Size) -> dict[str, Tensor]:
        """Focal loss of all cells, by the number of positive ones plus 1; mean dice loss of these, times its weight.

        size: (height, width) of the padded input. Source: slides:solo-losses.
        """
        centers = [exact_centers(target["masks"].bool()) for target in targets]
        focal, dice, count = [], [], 0
        for level, (logits, maps) in enumerate(zip(outputs.logits, outputs.maps, strict=True)):
            labels, truth = self.assign(level, centers, targets, size)
            image, index = labels.nonzero(as_tuple=True)  # (P,)
            predicted = self.head.cell_masks(maps, image, index)  # (P, H, W)
            dice.append(dice_loss(predicted, truth, eps=0.002).sum())
            one_hot = F.one_hot(labels, logits.shape[1] + 1)[..., 1:]  # (B, S * S, K)
            flat = logits.flatten(2).mT.to(predicted.dtype)
            focal.append(sigmoid_focal_loss(flat, one_hot.to(flat), alpha=0.25, gamma=2, reduction="sum"))
            count += len(image)
        positive = focal[0].new_tensor(count)
        return {
            "loss_class": torch.stack(focal).sum() / normaliser(positive + 1 / processes(), least=0),
            "loss_mask": self.mask_weight * torch.stack(dice).sum() / normaliser(positive),
        }

    def assign(
        self, level: int, centers: Sequence[Tensor], targets: Sequence[Target], size: Size
    ) -> tuple[Tensor, Tensor]:
        """Labels (B, S * S) of a level's cells, and the mask targets (P, H, W) of the positive ones in their order."""
        grid, stride = self.head.grids[level], self.strides[level] // 2
        labels, truth = [], []
        for center, target in zip(centers, targets, strict=True):
            label, matched = assign_cells(center, target, size, grid, self.ranges[level], self.sigma)
            masks = mask_targets(target["masks"].bool(), stride, (size[0] // stride, size[1] // stride))
            labels.append(label)
            truth.append(masks[matched[label > 0]])
        return torch.stack(labels), torch.cat(truth)

    def find_cells(self, outputs: Outputs, image: int) -> Cells:
        """(cell, class) pairs of one image above the score threshold, in order; a cell may give several."""
        found = []
        for level, logits in enumerate(outputs.logits):
            logits = logits[image : image + 1]
            scores = points_nms(logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid())
            scores = scores[0].flatten(1).T  # (S * S, K)
            index, label = (scores > self.score_threshold).nonzero(as_tuple=True)
            found.append(Cells(torch.full_like(index, level), index, label + 1, scores[index, label]))
        return Cells(*(torch.cat(field) for field in zip(*found, strict=True)))

    def draw_cells(self, outputs: Outputs, image: int, cells: Cells) -> Tensor:
        """Masks (N, H, W), as probabilities, of cells that are in the order of levels, at the first level's size."""
        maps = outputs.maps[0][0]
        size = (maps.shape[-2], maps.shape[-1])
        drawn = [
            self.head.cell_masks(maps, image, cells.k[cells.level == level], size)
            for level, maps in enumerate(outputs.maps)
        ]
        return torch.cat(drawn)

    def detect(self, outputs: Outputs, image: int) -> tuple[Cells, Tensor]:
        """Detections of one image of the batch by falling score, and their masks (N, H, W) as probabilities.

        A cell's score is its class probability times the mean probability within its mask, whose area, in cells of
        the map, must be above the number of its grid's stride, as in the official code.
        """
        cells = self.find_cells(outputs, image)
        soft = self.draw_cells(outputs, image, cells)
        masks = soft > 0.5
        area = masks.sum(dim=(1, 2))
        large = area > area.new_tensor(self.strides)[cells.level]
        cells, soft, masks, area = cells.pick(large), soft[large], masks[large], area[large]
        quality = (soft * masks).sum(dim=(1, 2)) / area
        cells = cells._replace(scores=cells.scores * quality)

        order = cells.scores.argsort(descending=True, stable=True)[: self.candidates]
        cells, soft, masks = cells.pick(order), soft[order], masks[order]
        if self.nms == "matrix":
            scores = matrix_nms(masks, cells.scores, cells.labels, self.kernel, self.nms_sigma)
            order = scores.argsort(descending=True, stable=True)
            cells = cells._replace(scores=scores)
        else:
            order = mask_nms(masks, cells.scores, cells.labels, self.nms_threshold)
        order = order[cells.scores[order] >= self.min_score][: self.detections]
        return cells.pick(order), soft[order]

    def to_output_size(self, soft: Tensor, padded: Size, size: Size, output_size: Size) -> Tensor:
        """Masks (N, *output_size) bool: the probabilities at the padded input's size, cut to the image's, resized."""
        masks = [
            resize(resize(part, padded)[:, : size[0], : size[1]], output_size) > 0.5
            for part in soft.split(16)  # a few at a time: whole images of numbers
        ]
        return torch.cat(masks)


class DecoupledSOLO(SOLO):
    """SOLO with `DecoupledHead`, and further the same arguments; head={"light": True} has a single mask branch.

    Source: slides:decoupled-solo.
    """

    head_class = DecoupledHead
