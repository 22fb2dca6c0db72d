"""AdaptIS: a point goes in beside the image, and the mask of the object at that point comes out.

Order of the data: images -> backbone, once -> features of the points -> controller -> what AdaIN makes of the instance
selection network, which draws each point's mask. Beside it a semantic branch says what is thing and what is stuff, and,
trained after all else, a proposal branch says which points are good ones. In training, points are drawn from objects
(`condinst_edu.adaptis_targets`); in inference, the greedy algorithm (`condinst_edu.adaptis_greedy`) proposes points
until all is segmented.

Points are (x, y) in pixels. Cell (i, j) of a map of stride s stands for pixel (s*j, s*i) here, as in the official code.

Legend: B images, N points of all images, C channels, V numbers of a point's vector, K classes of things, S of stuff,
h, w map, H, W image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes, sigmoid_focal_loss

from condinst_edu.adaptis_greedy import (
    Aggregate,
    RandomPoints,
    RankedPoints,
    aggregate,
    class_of_mask,
    cut_around,
    find_local_maxima,
    local_maxima_points,
)
from condinst_edu.adaptis_targets import (
    AdaptiveThreshold,
    Queries,
    mask_iou,
    proposal_labels,
    sample_points,
    semantic_targets,
    soft_proposal_labels,
)
from condinst_edu.coordinates import relative_coordconv
from condinst_edu.layers.deeplab import DeepLab, separable_block
from condinst_edu.layers.images import Batch, Size, Target, check_targets, make_batch
from condinst_edu.layers.losses import normalized_focal_loss, normalized_focal_softmax_loss
from condinst_edu.layers.unet import UNet, conv_relu_bn

__all__ = ["AdaIN", "AdaptIS", "aggregate", "find_local_maxima", "point_features", "sample_points"]

MaskLoss = Literal["nfl", "focal", "bce"]

# ------------------------------------------------------------------------------------------------------------- layers


class AdaIN(nn.Module):
    """Adaptive instance normalisation: each map normalised, then scaled and shifted as a vector says.

    channels: C; vector: V; eps: added to the variance. forward: x (N, C, h, w), vector (N, V) -> (N, C, h, w),
    (x - mean) / sqrt(var + eps) * scale(vector) + shift(vector), mean and variance of each map by itself.
    The MXNet code has no eps, so a constant map gives NaN there; the PyTorch branch shifts by 1 + shift(vector), where
    the 1 was meant for the scale. Here, as in MXNet, the scale starts around 1.
    Source: adaptis:adain.
    """

    def __init__(self, channels: int, vector: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale, self.shift = nn.Linear(vector, channels), nn.Linear(vector, channels)
        nn.init.ones_(self.scale.bias)
        nn.init.zeros_(self.shift.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        x = F.instance_norm(x, eps=self.eps)
        return x * self.scale(vector)[:, :, None, None] + self.shift(vector)[:, :, None, None]


def controller(in_channels: int, width: int, layers: int = 3) -> nn.Sequential:
    """Fully connected layers, each with ReLU and batch norm: embeddings (N, in_channels) -> vectors (N, width).

    Official toy model: the same layers on the whole map, read at the points afterwards; equal but for the statistics
    of batch norm in training. Source: adaptis:controller-network.
    """
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(width if i else in_channels, width), nn.ReLU(inplace=True), nn.BatchNorm1d(width)]
    return nn.Sequential(*parts)


def point_features(features: Tensor, image: Tensor, points: Tensor, stride: int = 1) -> Tensor:
    """Embeddings Q(x, y) of points, read bilinearly.

    features (B, C, h, w) at `stride` pixels; image (N,) int64, which of the batch each point is in; points (N, 2), (x,
    y) in pixels, clamped to the map. Returns (N, C). Source: adaptis:controller-network.
    """
    limits = points.new_tensor([features.shape[-1] - 1, features.shape[-2] - 1])
    place = torch.minimum((points / stride).clamp(min=0), limits)
    low = place.floor().long()
    high = torch.minimum(low + 1, limits.long())
    fraction = (place - low).to(features.dtype)
    (x1, y1), (x2, y2), (fx, fy) = low.T, high.T, fraction.T[:, :, None]
    top = torch.lerp(features[image, :, y1, x1], features[image, :, y1, x2], fx)  # (N, C)
    bottom = torch.lerp(features[image, :, y2, x1], features[image, :, y2, x2], fx)
    return torch.lerp(top, bottom, fy)


class InstanceHead(nn.Module):
    """The instance selection network with its controller: one mask for each point.

    in_channels: of the features; stride: theirs, in pixels; radius: R of the coordinates, in pixels; width: channels
    before and at AdaIN, and of the vector; separable: the form for photographs, in place of that of the toy problem;
    coordinates: False leaves Relative CoordConv out (Table 7); distance: a third map, as in the official code.
    forward: features (B, C, h, w), image (N,), points (N, 2) -> logits (N, h, w).
    The first convolution reads the features once per image, and only the coordinate maps once per point.
    Source: adaptis:adain, adaptis:relative-coordconv.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int = 1,
        radius: float = 42.0,
        width: int | None = None,
        separable: bool = False,
        coordinates: bool = True,
        distance: bool = False,
    ) -> None:
        super().__init__()
        width = width or in_channels
        self.stride, self.radius, self.distance = stride, radius, distance
        self.maps = (3 if distance else 2) if coordinates else 0
        self.controller = controller(in_channels, width)
        self.first = nn.Conv2d(self.maps + in_channels, width, 3, padding=1)  # coordinates come first
        self.adain = AdaIN(width, width)
        start: list[nn.Module] = [nn.ReLU(inplace=True), nn.BatchNorm2d(width)]
        if separable:
            self.before = nn.Sequential(
                *start, separable_block(width, width), nn.Conv2d(width, width, 1), nn.LeakyReLU(0.2)
            )
            widths = (width, width // 2, width // 4)
            blocks = [separable_block(i, o) for i, o in zip((width, *widths), widths, strict=False)]
            self.after = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 1))
            self.slope, self.shift = 1.0, 0.0
        else:
            self.before = nn.Sequential(*start, conv_relu_bn(width, width), conv_relu_bn(width, width))
            self.after = nn.Sequential(conv_relu_bn(width, width // 2), nn.Conv2d(width // 2, 1, 1))
            self.slope, self.shift = 0.2, -1.7  # official: masks begin as mostly empty

    def vectors(self, features: Tensor, image: Tensor, points: Tensor) -> Tensor:
        """The characteristic vectors (N, V) of the objects at the points."""
        return self.controller(point_features(features, image, points, self.stride))

    def forward(self, features: Tensor, image: Tensor, points: Tensor) -> Tensor:
        vectors = self.vectors(features, image, points)  # (N, V)
        weight = self.first.weight
        x = F.conv2d(features, weight[:, self.maps :], self.first.bias, padding=1)[image]  # (N, C, h, w)
        if self.maps:
            size = (features.shape[-2], features.shape[-1])
            exact = points.to(torch.promote_types(features.dtype, torch.float32))
            maps = relative_coordconv(size, self.stride, exact, self.radius, self.distance)
            x = x + F.conv2d(maps.to(features.dtype), weight[:, : self.maps], padding=1)
        x = self.adain(self.before(x), vectors)
        return self.slope * self.after(x).squeeze(1) + self.shift


def dense_head(in_channels: int, out_channels: int, width: int, separable: bool = False) -> nn.Sequential:
    """The semantic and the proposal branch: convolutions, then `out_channels` logits of every cell.

    Source: adaptis:proposal-branch ("the same structure as the semantic branch"; official: smaller ones).
    """
    block, layers = (separable_block, 2) if separable else (conv_relu_bn, 3)
    blocks = [block(width if i else in_channels, width) for i in range(layers)]
    return nn.Sequential(*blocks, nn.Conv2d(width, out_channels, 1))


# ---------------------------------------------------------------------------------------------------------- inference


@dataclass(frozen=True, eq=False)
class Seen:
    """What the backbone makes of one image, kept for as many points as are asked for.

    features (1, C, h, w), or (2, C, h, w) with those of the mirrored image; semantic (S + K, H, W) and proposals (H, W)
    are probabilities; size: (height, width) of the image.
    """

    model: "AdaptIS"
    features: Tensor
    semantic: Tensor
    proposals: Tensor
    size: Size

    @property
    def stuff(self) -> Tensor:
        """Pixels (H, W) bool that the semantic branch takes for stuff."""
        return self.semantic.argmax(dim=0) < self.model.stuff

    @torch.no_grad()
    def draw(self, points: Tensor) -> Tensor:
        """Probability (k, H, W) of each pixel to be on the object under each of the points (k, 2).

        With a mirrored image, the mean of both (official: the mirrored point is W - x, one pixel off).
        """
        image = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        found = self.model.probabilities(self.features[:1], image, points, self.size)
        if len(self.features) == 2:
            mirrored = torch.stack([self.size[1] - 1 - points[:, 0], points[:, 1]], dim=1)
            found = (found + self.model.probabilities(self.features[1:], image, mirrored, self.size).flip(2)) / 2
        radius = self.model.cut_radius
        return found if radius is None else cut_around(found, points, radius)

    def aggregate(self, generator: torch.Generator | None = None) -> Aggregate:
        """All instances of the image; stuff counts as segmented. Source: adaptis:greedy-aggregation."""
        model = self.model
        if model.propose == "random":
            return aggregate(
                self.draw,
                RandomPoints(model.candidates, generator),
                self.stuff,
                model.threshold,
                model.overlap,
                model.limit,
            )
        ranked = RankedPoints(local_maxima_points(self.proposals, model.proposal_threshold))
        return aggregate(self.draw, ranked, self.stuff, model.threshold, model.overlap, model.limit)


class AdaptIS(nn.Module):
    """The whole model, in torchvision's interface.

    num_classes: K, with the background as the only stuff; or K + S, of which num_things are things, for targets that
    hold all segments (labels of stuff after those of things); backbone: "unet", or a torchvision ResNet for DeepLabV3+;
    backbone_options: its arguments; head: of InstanceHead; branch_width: channels of the other branches; points: per
    image in training; loss: of the masks, "nfl", "focal" or "bce", with gamma; semantic_weight: of that loss (the paper
    gives none); stage: "masks" trains all but the proposal branch, "proposals" that branch alone; soft_labels: the
    official labels for it; propose: "random" (candidates at a time) or "branch" (its local maxima from
    proposal_threshold on); threshold T; overlap, limit: of `aggregate`; cut_radius: in pixels, of `cut_around`;
    min_stuff: of `panoptic`; flip: mean with the mirrored image.

    forward(images, targets) in training -> {"loss_mask", "loss_semantic"} or {"loss_proposals"};
    forward(images, output_sizes=None) in evaluation -> [{"boxes", "labels", "scores", "masks" (N, H, W) bool}], masks
    disjoint; with num_things "panoptic" (H, W) and "segments_info" too, as of `panoptic`.
    Target masks are full-size. Random points are the same for the same image (generator of seed 0).
    Source: adaptis:nfl, adaptis:greedy-aggregation, adaptis:proposal-branch.
    """

    def __init__(
        self,
        num_classes: int = 1,
        num_things: int | None = None,
        backbone: str = "unet",
        backbone_options: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        branch_width: int = 32,
        points: int = 12,
        loss: MaskLoss = "nfl",
        gamma: float = 2.0,
        semantic_weight: float = 0.75,
        stage: Literal["masks", "proposals"] = "masks",
        soft_labels: bool = False,
        propose: Literal["random", "branch"] = "random",
        candidates: int = 7,
        proposal_threshold: float = 0.35,
        threshold: float = 0.4,
        overlap: float = 0.5,
        limit: int = 100,
        cut_radius: int | None = None,
        min_stuff: int = 0,
        flip: bool = False,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("loss", loss, ("nfl", "focal", "bce")),
            ("stage", stage, ("masks", "proposals")),
            ("propose", propose, ("random", "branch")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, not {value!r}")
        if num_things is not None and not 0 < num_things < num_classes:
            raise ValueError(f"num_things is between 1 and num_classes - 1, not {num_things} of {num_classes}")
        self.whole = num_things is not None  # targets hold all segments, and results are panoptic
        self.num_things = num_classes if num_things is None else num_things
        self.stuff = 1 if num_things is None else num_classes - num_things
        options = dict(backbone_options or {})
        self.backbone = UNet(**options) if backbone == "unet" else DeepLab(backbone, **options)
        photographs = backbone != "unet"
        channels, self.stride = self.backbone.out_channels, self.backbone.stride
        self.divisor = 8 if photographs else self.stride
        self.head = InstanceHead(channels, self.stride, **{"separable": photographs, **(head or {})})
        self.semantic = dense_head(channels, self.stuff + self.num_things, branch_width, photographs)
        self.proposals = dense_head(channels, 1, branch_width, photographs)
        self.points, self.loss, self.gamma = points, loss, gamma
        self.semantic_weight, self.stage = semantic_weight, stage
        self.label_threshold = AdaptiveThreshold() if soft_labels else None
        self.propose, self.candidates, self.proposal_threshold = propose, candidates, proposal_threshold
        self.threshold, self.overlap, self.limit = threshold, overlap, limit
        self.cut_radius, self.min_stuff, self.flip = cut_radius, min_stuff, flip
        self.mean, self.std = tuple(mean), tuple(std)
        trained_first = [m for m in self.children() if m is not self.proposals]
        for module in trained_first if stage == "proposals" else [self.proposals]:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> "AdaptIS":
        """As of any module; but what is not trained keeps its statistics (official: they move with the data)."""
        super().train(mode)
        if self.stage == "proposals":
            for module in (self.backbone, self.head, self.semantic):
                module.eval()
        return self

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        output_sizes: Sequence[Size] | None = None,
    ) -> Any:
        batch = make_batch(images, self.mean, self.std, self.divisor)
        if self.training:
            check_targets(images, targets, "masks")
            return self.losses(batch, targets or ())
        sizes = batch.with_output(output_sizes)
        return [self.detect(image, *size) for image, size in zip(images, sizes, strict=True)]

    def logits(self, features: Tensor, image: Tensor, points: Tensor) -> Tensor:
        """Mask logits (N, H, W) at the size of the padded images."""
        return self.enlarge(self.head(features, image, points)[:, None])[:, 0]

    def enlarge(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) at the padded images' size: bilinear, corners on corners, as in the official code."""
        if self.stride == 1:
            return maps
        return F.interpolate(maps, scale_factor=self.stride, mode="bilinear", align_corners=True)

    def probabilities(self, features: Tensor, image: Tensor, points: Tensor, size: Size) -> Tensor:
        """Mask probabilities (N, *size), cut to an image's own size."""
        return self.logits(features, image, points)[:, : size[0], : size[1]].sigmoid()

    def losses(self, batch: Batch, targets: Sequence[Target]) -> dict[str, Tensor]:
        """All losses by name; the overall loss is their plain sum."""
        size = (batch.images.shape[-2], batch.images.shape[-1])
        features = self.backbone(batch.images)
        things = [{"masks": t["masks"][t["labels"] <= self.num_things]} for t in targets]
        queries = sample_points(things, batch.sizes, size, self.points, self.stage == "proposals")
        if self.stage == "proposals":
            return {"loss_proposals": self.proposal_loss(features, queries)}
        logits = self.logits(features, queries.image, queries.points)
        classes = semantic_targets(
            targets, batch.sizes, size, self.num_things, self.stuff, rest=-1 if self.whole else 0
        )
        semantic = normalized_focal_softmax_loss(self.enlarge(self.semantic(features)), classes)
        return {
            "loss_mask": self.mask_loss(logits, queries.masks).mean(),
            "loss_semantic": self.semantic_weight * semantic.mean(),
        }

    def mask_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Loss (N,) of each mask, logits and masks (N, H, W); pixels of -1 do not count.

        Source: adaptis:nfl, adaptis:focal.
        """
        if self.loss == "nfl":
            return normalized_focal_loss(logits, masks, self.gamma)
        valid = masks >= 0
        if self.loss == "focal":
            loss = sigmoid_focal_loss(logits, masks.clamp(min=0), alpha=-1, gamma=self.gamma)
        else:
            loss = F.binary_cross_entropy_with_logits(logits, masks.clamp(min=0), reduction="none")
        return (loss * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp(min=1)

    def proposal_loss(self, features: Tensor, queries: Queries) -> Tensor:
        """Binary cross-entropy of the proposal branch at points of one object an image.

        Source: adaptis:proposal-branch.
        """
        with torch.no_grad():
            probabilities = self.logits(features, queries.image, queries.points).sigmoid()
            adaptive = self.label_threshold
            threshold = self.threshold if adaptive is None else adaptive(probabilities, queries.masks)
            iou = mask_iou(probabilities > threshold, queries.masks).unflatten(0, (-1, self.points))  # (B, P)
            labels = proposal_labels(iou)
            if adaptive is not None:
                inside = (queries.masks > 0).flatten(1)
                mean = (probabilities.flatten(1) * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
                labels = soft_proposal_labels(iou, mean.unflatten(0, (-1, self.points)))
            known = (queries.masks > 0).flatten(1).any(dim=1) & (labels.flatten() >= 0)
        read = point_features(self.proposals(features), queries.image, queries.points, self.stride)[:, 0]
        loss = F.binary_cross_entropy_with_logits(read, labels.flatten().clamp(min=0), reduction="none")
        return (loss * known).sum() / len(known)

    @torch.no_grad()
    def look(self, image: Tensor) -> Seen:
        """Run the backbone on one image (3, H, W) in [0, 1]; what it returns draws the masks of any points."""
        views = [image, image.flip(2)] if self.flip else [image]
        batch = make_batch(views, self.mean, self.std, self.divisor)
        features = self.backbone(batch.images)
        height, width = size = batch.sizes[0]
        semantic = self.enlarge(self.semantic(features))[:, :, :height, :width].softmax(dim=1)
        proposals = self.enlarge(self.proposals(features))[:, 0, :height, :width].sigmoid()
        both = [(x[0] + x[-1].flip(-1)) / 2 if self.flip else x[0] for x in (semantic, proposals)]
        return Seen(self, features, both[0], both[1], size)

    def detect(self, image: Tensor, size: Size, output_size: Size) -> dict[str, Any]:
        """Instances of one image (3, H, W), best first, in pixels of the output size; see `forward`."""
        seen = self.look(image)
        found = seen.aggregate(torch.Generator().manual_seed(0))
        masks = found.masks
        labels, certainty = class_of_mask(seen.semantic[self.stuff :], masks)
        scores = found.scores * certainty
        semantic = seen.semantic.argmax(dim=0)
        if output_size != size:
            masks, semantic = nearest(masks, output_size), nearest(semantic[None], output_size)[0]
        order = scores.argsort(descending=True)
        order = order[masks[order].flatten(1).any(dim=1)]
        boxes = masks_to_boxes(masks[order]) + scores.new_tensor([0, 0, 1, 1])
        result = {"boxes": boxes, "labels": labels[order] + 1, "scores": scores[order], "masks": masks[order]}
        if self.whole:
            result |= panoptic(result, semantic, self.num_things, self.stuff, self.min_stuff)
        return result


def nearest(maps: Tensor, size: Size) -> Tensor:
    """Maps (N, H, W) of whole numbers at another size, each pixel from the nearest."""
    return F.interpolate(maps[:, None].float(), size, mode="nearest-exact")[:, 0].to(maps.dtype)


def panoptic(
    result: Mapping[str, Tensor], semantic: Tensor, num_things: int, stuff: int, min_stuff: int = 0
) -> dict[str, Any]:
    """Disjoint instances and a map of classes as one panoptic result: "panoptic" (H, W) segment ids, "segments_info".

    result: masks, labels and scores of instances; semantic (H, W): 0..S - 1 stuff, from S on things. category_id is
    1..K for things and K + 1..K + S for stuff; a pixel that looks like a thing and is in no instance is void, 0, and so
    is stuff of fewer than min_stuff pixels (the paper and the official code have no such limit).
    """
    ids = torch.zeros_like(semantic)
    info: list[dict[str, Any]] = []
    rows = zip(result["masks"], result["labels"].tolist(), result["scores"].tolist(), strict=True)
    for i, (mask, label, score) in enumerate(rows, start=1):
        ids[mask] = i
        info.append({"id": i, "category_id": label, "isthing": True, "score": score, "area": int(mask.sum())})
    for s in range(stuff):
        here = (semantic == s) & (ids == 0)
        area = int(here.sum())
        if area and area >= min_stuff:
            ids[here] = len(info) + 1
            info.append({"id": len(info) + 1, "category_id": num_things + 1 + s, "isthing": False, "area": area})
    return {"panoptic": ids, "segments_info": info}
