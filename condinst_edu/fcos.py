"""FCOS: a detector in which every location of a feature pyramid predicts a class and the four sides of a box.

Order of the data: images -> one padded batch -> backbone -> FPN -> head on every level -> (training) targets for each
location and losses, (inference) decoding, score threshold, NMS. CondInst 2.1-2.4 and Fig. 3; where the papers are
silent, the official code decides. Every step is a function of its own.

Legend: B images, L locations of all levels together, K classes, M objects of an image (padded), R positive locations,
N detections of an image. Distances are (left, top, right, bottom) from a location to the sides of a box.
"""

import itertools
from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, sigmoid_focal_loss

from condinst_edu.coordinates import locations, mass_centers, neighbours
from condinst_edu.layers.backbones import Backbone, build_backbone
from condinst_edu.layers.bifpn import BiFPN
from condinst_edu.layers.blocks import Norm, conv_block
from condinst_edu.layers.fpn import FPN
from condinst_edu.layers.images import Batch, Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import giou_loss, normaliser


class Points(NamedTuple):
    """All locations of the head's levels: xy (L, 2), stride (L,) and reach (L, 2) in pixels, level (L,) from 0.

    neighbours (L, 9): indices of the 3x3 locations around each on its level, row-major; L stands for the zero padding.
    """

    xy: Tensor
    stride: Tensor
    reach: Tensor
    level: Tensor
    neighbours: Tensor


class Outputs(NamedTuple):
    """Raw outputs: logits (B, L, K), distances (B, L, 4) in strides, centerness logits (B, L).

    tower (B, L, C): features of the box tower, which the top module reads (`FCOSHead.top_at`); C is 0 without one.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    tower: Tensor


class Assignment(NamedTuple):
    """Targets: labels (B, L), 0 for background; distances (B, L, 4) in strides; matched (B, L), the object's index.

    Distances and index of a background location mean nothing.
    """

    labels: Tensor
    distances: Tensor
    matched: Tensor


class Instances(NamedTuple):
    """Detections of one image, by falling score: boxes (N, 4) xyxy in pixels of the network's input, not clipped.

    scores (N,); labels (N,) from 1; location (N,): index of the location that predicted it.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    location: Tensor

    def pick(self, index: Tensor) -> "Instances":
        """Those at the indices, or where the mask is True."""
        return Instances(*(field[index] for field in self))


# ----------------------------------------------------------------------------------------------------------------- head


class Tower(nn.ModuleList):
    """`convs` 3x3 convolutions, each with its normalisation and ReLU, the same for all levels.

    norm: as of `conv_block`, or "bn_per_level", a batch norm for each of `levels` levels behind the shared convolution.
    forward: (B, C, H, W) and the level's index, which matters only to "bn_per_level" -> the same shape.
    """

    def __init__(self, channels: int, convs: int, norm: Norm | Literal["bn_per_level"], levels: int) -> None:
        blocks = [conv_block(channels, channels, norm="none" if norm == "bn_per_level" else norm) for _ in range(convs)]
        if norm == "bn_per_level":
            for block in blocks:
                block.insert(1, nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels)))
        super().__init__(blocks)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        for block in self.children():
            for layer in block.children():
                x = layer[level](x) if isinstance(layer, nn.ModuleList) else layer(x)
        return x


class FCOSHead(nn.Module):
    """Two towers of convolutions shared by all levels: one gives classes; the other boxes, centre-ness and `top`.

    in_channels: of the pyramid; num_classes: K; strides: of the levels, in pixels; tower_convs: depth of a tower;
    norm: inside the towers (see `Tower`); shared_towers: one tower for everything (real-time models); top_channels:
    outputs of the top module, e.g. a controller (0: none); learned_scales: multiply each level's distances by a learned
    number (the official BlendMask does not). Centre-ness and top module are on the box tower, as in the official code.
    forward: the pyramid -> Outputs. The top module runs afterwards, where it is needed: at a few sampled or detected
    locations instead of all. Source: condinst:controller, condinst:eq-1.
    """

    scales: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int],
        tower_convs: int = 4,
        norm: Norm | Literal["bn_per_level"] = "gn",
        shared_towers: bool = False,
        top_channels: int = 0,
        learned_scales: bool = True,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        tower = (in_channels, tower_convs, norm, len(self.strides))
        self.class_tower = nn.Identity() if shared_towers else Tower(*tower)
        self.box_tower = Tower(*tower)
        self.shared_towers = shared_towers
        self.class_logits = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.top = nn.Conv2d(in_channels, top_channels, 3, padding=1) if top_channels else None
        scales = torch.ones(len(self.strides))  # one factor per level
        if learned_scales:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Focal loss needs a start at which everything is background with probability 0.99.
        nn.init.constant_(self.class_logits.bias, -log(99))  # type: ignore[arg-type]

    def forward(self, pyramid: Sequence[Tensor]) -> Outputs:
        levels = [self.forward_level(x, level) for level, x in enumerate(pyramid)]
        return Outputs(*(torch.cat(maps, dim=1) for maps in zip(*levels, strict=True)))

    def forward_level(self, x: Tensor, level: int) -> Outputs:
        """Outputs of one level, counted from 0: (B, C, H, W) -> fields (B, H * W, ...)."""
        box = self.box_tower(x, level)
        logits = self.class_logits(box if self.shared_towers else self.class_tower(x, level))
        distances = F.relu(self.scales[level] * self.box_distances(box))
        maps = (logits, distances, self.centerness(box), box if self.top is not None else box[:, :0])
        flat = [m.flatten(2).mT.float() if m.dtype != torch.float64 else m.flatten(2).mT for m in maps]
        return Outputs(flat[0], flat[1], flat[2].squeeze(-1), flat[3])

    def top_at(self, outputs: Outputs, points: Points, image: int, location: Tensor) -> Tensor:
        """The top module, a 3x3 convolution, at N locations of one image: (N,) indices -> (N, top_channels)."""
        if self.top is None:
            raise ValueError("this head has no top module")
        padded = F.pad(outputs.tower[image], (0, 0, 0, 1))  # (L + 1, C), the last row is the padding
        patches = padded[points.neighbours[location]]  # (N, 9, C)
        weight = self.top.weight.permute(0, 2, 3, 1).flatten(1)  # (top, 9 * C)
        return F.linear(patches.flatten(1), weight, self.top.bias)


# ------------------------------------------------------------------------------------------------------------ targets


def make_points(pyramid: Sequence[Tensor], strides: Sequence[int], ranges: Sequence[tuple[float, float]]) -> Points:
    """Locations of all levels. ranges: smallest and largest of the longest distances that a level answers for (pixels).

    Source: condinst:locations.
    """
    fields: list[list[Tensor]] = []
    start = 0
    for level, (x, stride, reach) in enumerate(zip(pyramid, strides, ranges, strict=True)):
        height, width = x.shape[-2:]
        xy = locations((height, width), stride, x.device)
        fields.append(
            [
                xy,
                xy.new_full((len(xy),), stride),
                torch.stack([xy.new_full((len(xy),), end) for end in reach], dim=1),  # no copy, which a GPU waits for
                torch.full((len(xy),), level, device=x.device),
                neighbours((height, width), start, x.device),
            ]
        )
        start += len(xy)
    merged = [torch.cat(field) for field in zip(*fields, strict=True)]
    merged[-1].masked_fill_(merged[-1] < 0, start)  # off the map: the padding
    return Points(*merged)


def pad_targets(targets: Sequence[Target], center: str = "box") -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, M, 4), labels (B, M) and centres (B, M, 2) of all images as one tensor each, padded with label 0.

    center: "box", the middle of each box; "mass", the target's `centers`, or the mass centres of its full-size masks.
    M is at least 1.
    """
    boxes = [target["boxes"] for target in targets]
    if center == "mass":
        if not all("centers" in target or "masks" in target for target in targets):
            raise ValueError("mass centres need 'masks' or 'centers' in every target")
        centers = [t["centers"] if "centers" in t else mass_centers(t["masks"]) for t in targets]
    else:
        centers = [(b[:, :2] + b[:, 2:]) / 2 for b in boxes]
    most = max(1, *(len(b) for b in boxes))
    padded = [
        torch.stack([F.pad(x, (0,) * (2 * x.dim() - 1) + (most - len(x),)) for x in field])
        for field in (boxes, [t["labels"] for t in targets], centers)
    ]
    return padded[0], padded[1], padded[2]


def assign_targets(points: Points, boxes: Tensor, labels: Tensor, centers: Tensor, radius: float = 1.5) -> Assignment:
    """Which object, if any, each location answers for.

    A location is positive for an object if it lies strictly inside the object's box and within radius * stride of its
    centre (along each axis), and if the longest of its four distances is in its level's range, both ends included.
    Among several objects it takes the one of the smallest box. radius 0: the whole box is the centre region.
    boxes (B, M, 4), labels (B, M) with 0 for padding, centers (B, M, 2), all in pixels; radius in strides.
    Source: condinst:center-region.
    """
    x, y = points.xy[:, :1], points.xy[:, 1:]  # (L, 1)
    x0, y0, x1, y1 = boxes[:, None].unbind(dim=-1)  # (B, 1, M)
    left, top, right, bottom = x - x0, y - y0, x1 - x, y1 - y  # (B, L, M)
    longest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    valid = (longest >= points.reach[:, :1]) & (longest <= points.reach[:, 1:]) & (labels > 0)[:, None]
    valid &= torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom)) > 0
    if radius > 0:
        center_x, center_y = centers[:, None].unbind(dim=-1)
        offset = torch.maximum((x - center_x).abs(), (y - center_y).abs())
        valid &= offset < radius * points.stride[:, None]
    areas = ((x1 - x0) * (y1 - y0)).expand_as(valid).masked_fill(~valid, torch.inf)
    smallest, matched = areas.min(dim=-1)  # (B, L)
    found = labels.gather(1, matched).masked_fill(smallest == torch.inf, 0)
    box = boxes.gather(1, matched[..., None].expand(-1, -1, 4))
    distances = torch.cat([points.xy - box[..., :2], box[..., 2:] - points.xy], dim=-1)  # (B, L, 4)
    return Assignment(found, distances / points.stride[:, None], matched)


def centerness(distances: Tensor) -> Tensor:
    """How near a location is to the middle of its box: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    distances (..., 4), positive, in any unit. Returns (...) in (0, 1]. Source: slides:centerness.
    """
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratio = horizontal.amin(-1) * vertical.amin(-1) / (horizontal.amax(-1) * vertical.amax(-1))
    return ratio.sqrt()


# ------------------------------------------------------------------------------------------------------------- losses


def fcos_losses(outputs: Outputs, assignment: Assignment, giou_smooth: float = 1.0) -> dict[str, Tensor]:
    """Focal loss on the classes, GIoU loss on the boxes, binary cross-entropy on the centre-ness; one number each.

    Classes and centre-ness are divided by the number of positives, boxes are weighted by their centre-ness target and
    divided by its sum, both of the whole batch where several processes share it (`normaliser`). Without positives the
    last two are 0 and every output still receives a gradient (of 0).
    giou_smooth: see `giou_loss`; 1 as in the official code. Source: condinst:eq-1 (L_fcos).
    """
    image, location = torch.nonzero(assignment.labels, as_tuple=True)  # the one host synchronisation
    one_hot = F.one_hot(assignment.labels, outputs.logits.shape[-1] + 1)[..., 1:]
    focal = sigmoid_focal_loss(outputs.logits, one_hot.to(outputs.logits), alpha=0.25, gamma=2, reduction="sum")

    target_distances = assignment.distances[image, location]  # (R, 4)
    weight = centerness(target_distances).to(outputs.logits)
    giou = giou_loss(outputs.distances[image, location], target_distances.to(outputs.distances), giou_smooth)
    num_positive = normaliser(weight.new_full((), len(image)))
    entropy = F.binary_cross_entropy_with_logits(outputs.centerness[image, location], weight, reduction="sum")
    return {
        "loss_class": focal / num_positive,
        "loss_box": (giou * weight).sum() / normaliser(weight.sum(), least=1e-6),
        "loss_centerness": entropy / num_positive,
    }


# ---------------------------------------------------------------------------------------------------------- inference


def decode(points: Points, distances: Tensor) -> Tensor:
    """Boxes (..., L, 4) xyxy in pixels from distances (..., L, 4) in strides."""
    distances = distances * points.stride[:, None]
    return torch.cat([points.xy - distances[..., :2], points.xy + distances[..., 2:]], dim=-1)


def select_candidates(
    points: Points, outputs: Outputs, image: int, threshold: float, threshold_product: bool, top_n: int
) -> Instances:
    """(location, class) pairs of one image above the score threshold, at most `top_n` of each level.

    A pair's score is sqrt(class probability * centre-ness); the threshold is on class probability * centre-ness, or,
    with threshold_product False, on the class probability alone. One location can give several classes.
    """
    probability = outputs.logits[image].sigmoid()  # (L, K)
    product = probability * outputs.centerness[image].sigmoid()[:, None]
    passed = (product if threshold_product else probability) > threshold
    kept = []
    for level in range(int(points.level[-1]) + 1):
        location, label = torch.nonzero(passed & (points.level == level)[:, None], as_tuple=True)
        best = product[location, label].topk(min(top_n, len(location))).indices
        kept.append(torch.stack([location[best], label[best]]))
    location, label = torch.cat(kept, dim=1)
    return Instances(
        decode(points, outputs.distances[image])[location],
        product[location, label].sqrt(),
        label + 1,
        location,
    )


def keep_best(instances: Instances, limit: int) -> Instances:
    """The `limit` best by score, falling; those that tie with the last are kept too, as in the official code."""
    instances = instances.pick(instances.scores.argsort(descending=True, stable=True))
    if len(instances.scores) > limit > 0:
        instances = instances.pick(instances.scores >= instances.scores[limit - 1])
    return instances


def class_nms(instances: Instances, threshold: float) -> Instances:
    """Non-maximum suppression among boxes of the same class; threshold: IoU. Source: condinst:inference."""
    # batched_nms moves the classes apart by the largest coordinate, which is enough only where none is below 0.
    lowest = torch.cat([instances.boxes.flatten(), instances.boxes.new_zeros(1)]).amin()
    return instances.pick(batched_nms(instances.boxes - lowest, instances.scores, instances.labels, threshold))


def to_output_size(boxes: Tensor, size: Size, output_size: Size) -> tuple[Tensor, Tensor]:
    """Boxes scaled from the input's pixels to the output's and clipped, and which of them are not empty."""
    height, width = output_size
    scale = boxes.new_tensor([width / size[1], height / size[0]]).repeat(2)
    limit = boxes.new_tensor([width, height]).repeat(2)
    boxes = torch.minimum((boxes * scale).clamp(min=0), limit)
    return boxes, (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


# -------------------------------------------------------------------------------------------------------------- model


class FCOS(nn.Module):
    """The whole detector, in torchvision's interface.

    num_classes: K; backbone, backbone_options: see `build_backbone`; levels: of the pyramid (level l has stride 2^l);
    neck: what makes the pyramid, "fpn" or "bifpn"; neck_options: further arguments of FPN or BiFPN; head_from: the
    first level that the head is applied to (None: all); channels: of the pyramid and the towers; ranges: upper ends in
    pixels of all the head's levels' ranges but the last; center:
    "box", or "mass" for the mass centre of the mask (CondInst); radius: of the centre region, in strides;
    score_threshold, threshold_product: see `select_candidates`; candidates: per level before NMS; nms_threshold: IoU;
    detections: per image at most; head: further arguments of FCOSHead; mean, std: of RGB in [0, 1].

    forward(images, targets) in training -> {"loss_class", "loss_box", "loss_centerness"};
    forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores"}] in the output sizes' pixels.
    images: list of (3, H, W) float in [0, 1]; targets: list of dicts with boxes, labels (and masks for "mass").
    Source: condinst:eq-1, condinst:inference.
    """

    def __init__(
        self,
        num_classes: int = 80,
        backbone: str = "resnet50",
        backbone_options: Mapping[str, Any] | None = None,
        levels: Sequence[int] = (3, 4, 5, 6, 7),
        channels: int = 256,
        neck: Literal["fpn", "bifpn"] = "fpn",
        neck_options: Mapping[str, Any] | None = None,
        head_from: int | None = None,
        ranges: Sequence[float] = (64, 128, 256, 512),
        center: Literal["box", "mass"] = "box",
        radius: float = 1.5,
        giou_smooth: float = 1.0,
        score_threshold: float = 0.05,
        threshold_product: bool = False,
        candidates: int = 1000,
        nms_threshold: float = 0.6,
        detections: int = 100,
        head: Mapping[str, Any] | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        head_levels = [level for level in levels if head_from is None or level >= head_from]
        if len(ranges) != len(head_levels) - 1:
            raise ValueError(f"{len(head_levels)} levels need {len(head_levels) - 1} ends of ranges, not {len(ranges)}")
        if any(not a < b for a, b in itertools.pairwise((0, *ranges))):
            raise ValueError(f"ranges must be rising numbers of pixels: {tuple(ranges)}")
        if center not in ("box", "mass"):
            raise ValueError(f"center must be 'box' or 'mass', not {center!r}")
        necks: dict[str, type[nn.Module]] = {"fpn": FPN, "bifpn": BiFPN}
        if neck not in necks:
            raise ValueError(f"neck must be 'fpn' or 'bifpn', not {neck!r}")
        self.backbone: Backbone = build_backbone(backbone, **(backbone_options or {}))
        self.strides = tuple(2**level for level in head_levels)
        self.fpn = necks[neck](self.backbone.channels, channels, levels, **(neck_options or {}))
        self.head = FCOSHead(channels, num_classes, self.strides, **(head or {}))
        self.ranges = list(zip((-1, *ranges), (*ranges, torch.inf), strict=True))
        self.center, self.radius, self.giou_smooth = center, radius, giou_smooth
        self.score_threshold, self.threshold_product = score_threshold, threshold_product
        self.candidates, self.nms_threshold, self.detections = candidates, nms_threshold, detections
        self.divisor = max(32, 2 ** max(self.backbone.channels))
        self.mean, self.std = tuple(mean), tuple(std)  # no buffers: in float64 they are as exact as they were given

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.mean, self.std, self.divisor)
        pyramid, points, outputs = self.run(batch)
        if self.training:
            check_targets(images, targets)
            losses = fcos_losses(outputs, self.assign(points, targets or ()), self.giou_smooth)
            return {**losses, "loss_box": losses["loss_box"] + self.idle(pyramid)}
        results = []
        for i, (size, output_size) in enumerate(batch.with_output(output_sizes)):
            found = self.detect(points, outputs, i)
            boxes, keep = to_output_size(found.boxes, size, output_size)
            results.append({"boxes": boxes[keep], "labels": found.labels[keep], "scores": found.scores[keep]})
        return results

    def run(self, batch: Batch) -> tuple[list[Tensor], Points, Outputs]:
        """The network itself: the pyramid's maps, the locations of the head's levels, and its outputs there."""
        pyramid = self.fpn(self.backbone(batch.images))
        maps = pyramid[-len(self.strides) :]
        return pyramid, make_points(maps, self.strides, self.ranges), self.head(maps)

    def idle(self, pyramid: Sequence[Tensor]) -> Any:
        """0, through which the levels below the head get a gradient of 0: processes wait for every parameter's."""
        return 0 * sum(x.sum() for x in pyramid[: -len(self.strides)])

    def assign(self, points: Points, targets: Sequence[Target]) -> Assignment:
        """Targets of all locations for a batch."""
        return assign_targets(points, *pad_targets(targets, self.center), self.radius)

    def propose(self, points: Points, outputs: Outputs, image: int) -> Instances:
        """Candidates of one image of the batch, before NMS."""
        return select_candidates(points, outputs, image, self.score_threshold, self.threshold_product, self.candidates)

    def detect(self, points: Points, outputs: Outputs, image: int) -> Instances:
        """Detections of one image of the batch: candidates, class-wise NMS, the best ones."""
        found = class_nms(self.propose(points, outputs, image), self.nms_threshold)
        return keep_best(found, self.detections)
