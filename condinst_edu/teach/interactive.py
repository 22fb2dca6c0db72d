"""What the lessons let one play with, as plain functions: the mask that one location draws, the targets of one image.

`look` runs a network once on an image; `segment_at` and `redraw` then answer as often as asked. The widgets on top of
them are in `condinst_edu.teach.widgets`, the pictures in `condinst_edu.teach.segment_pictures`.

Legend: L locations, M objects, P parameters, C channels, H, W map.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from condinst_edu import fcos
from condinst_edu.adaptis import AdaptIS
from condinst_edu.condinst import CondInst
from condinst_edu.coordinates import absolute_coordinates, relative_coordinates
from condinst_edu.fcos import Assignment, Outputs, Points
from condinst_edu.layers.images import Size, make_batch
from condinst_edu.layers.upsample import resize_masks
from condinst_edu.mask_head import DynamicMaskHead, split_parameters
from condinst_edu.teach.point_segment import PointSegment, look_adaptis
from condinst_edu.teach.xray import evaluating

# ------------------------------------------------------------------------------------------------- masks of locations


class Segment(NamedTuple):
    """The mask that one location of a CondInst draws, and everything on the way to it.

    level: of the pyramid (3 for P3); stride: of that level, in pixels; location: (x, y) in pixels, also the origin of
    relative coordinates; label (from 1) and score, sqrt(probability * centre-ness), of its best class; theta (P,);
    scale: unit of the relative coordinates, in pixels; coordinates (2, H, W) that the mask head reads, or None;
    features (C, H, W) of the bottom branch; activations: a map (channels, H, W) for every layer, after its ReLU, the
    last the logits; logits (H, W) as the model computes them; mask bool, of the image's size; seen: where it is from.
    """

    level: int
    stride: int
    location: tuple[float, float]
    label: int
    score: float
    theta: Tensor
    scale: float
    coordinates: Tensor | None
    features: Tensor
    activations: list[Tensor]
    logits: Tensor
    mask: Tensor
    seen: "Look"


@dataclass(frozen=True, eq=False)
class Look:
    """A CondInst's run on one image (3, H, W): locations, outputs, features (C, H, W), scores and labels (L,)."""

    model: CondInst
    image: Tensor
    points: Points
    outputs: Outputs
    features: Tensor
    scores: Tensor
    labels: Tensor

    @property
    def levels(self) -> tuple[int, ...]:
        """The pyramid's levels that have locations: (3, 4, 5) for P3 to P5."""
        return self.model.fcos.levels[-len(self.model.fcos.strides) :]

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.image.shape[1], self.image.shape[2]

    def surest_pixel(self) -> tuple[int, int]:
        """(x, y) of the location on the image that has the highest score."""
        height, width = self.size
        x, y = self.points.xy.T
        best = self.scores.masked_fill((x >= width) | (y >= height), -1).argmax()
        return int(x[best]), int(y[best])

    def nearest(self, x: float, y: float, level: int | None = None) -> int:
        """Index of the location of a level that is nearest to pixel (x, y); level None: of the surest one's level.

        Errors: ValueError for a pixel off the image, or a level that has no locations.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"pixel ({x:g}, {y:g}) is off the image, whose pixels go to ({width - 1}, {height - 1})")
        if level is not None and level not in self.levels:
            raise ValueError(f"level must be None or one of {self.levels}, not {level!r}")
        distance = (self.points.xy - self.points.xy.new_tensor([x, y])).square().sum(dim=1)  # (L,)
        chosen = range(len(self.levels)) if level is None else [self.levels.index(level)]
        candidates = [int(distance.masked_fill(self.points.level != k, torch.inf).argmin()) for k in chosen]
        return max(candidates, key=lambda location: float(self.scores[location]))

    def segment_at(self, x: float, y: float, level: int | None = None) -> Segment:
        """See `segment_at`."""
        return self.segment_of(self.nearest(x, y, level))

    @torch.no_grad()
    def segment_of(self, location: int) -> Segment:
        """The mask that the location of this index draws."""
        index = torch.tensor([location], device=self.features.device)
        theta = self.model.fcos.head.top_at(self.outputs, self.points, 0, index)[0]  # (P,)
        level = int(self.points.level[location])
        x, y = self.points.xy[location].tolist()
        scale = float(self.model.scales[level])
        drawn = self.draw(theta, (x, y), scale)
        label, score = int(self.labels[location]), float(self.scores[location])
        stride = int(self.points.stride[location])
        return Segment(self.levels[level], stride, (x, y), label, score, theta, scale, *drawn, self)

    @torch.no_grad()
    def draw(
        self, theta: Tensor, origin: tuple[float, float], scale: float
    ) -> tuple[Tensor | None, Tensor, list[Tensor], Tensor, Tensor]:
        """What the mask head makes of theta (P,): coordinates, features, activations, logits, mask (see `Segment`).

        origin: (x, y) of the relative coordinates, and their unit, in pixels.
        """
        model, features = self.model, self.features
        center, unit = features.new_tensor([origin]), features.new_tensor([scale])
        logits = model.mask_head(features, theta[None], center, unit, model.stride)  # (1, H, W)
        mask = resize_masks(logits, model.stride, self.size, self.size, model.factor)[0]
        coordinates = coordinate_maps(model.mask_head, features, center, unit, model.stride)
        activations = layer_by_layer(model.mask_head, features, theta, coordinates)
        return coordinates, features, activations, logits[0], mask


def look(model: nn.Module, image: Tensor) -> Any:
    """Run a model once on an image (3, H, W) in [0, 1]; what it returns answers `segment_at` many times.

    A CondInst gives a `Look`, an AdaptIS a `PointLook`.

    The model's training mode is left as it was. Errors: TypeError for another model.
    """
    if isinstance(model, CondInst):
        return _look_condinst(model, image)
    if isinstance(model, AdaptIS):
        return look_adaptis(model, image)
    raise TypeError(f"segment_at knows CondInst and AdaptIS, not {type(model).__name__}")


def _look_condinst(model: CondInst, image: Tensor) -> Look:
    image = image.to(model.scales.device)
    with evaluating(model):
        pyramid, points, outputs = model.fcos.run(
            make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
        )
        features = model.bottom(pyramid)[0]
        product = outputs.logits[0].sigmoid() * outputs.centerness[0].sigmoid()[:, None]  # (L, K)
        best, label = product.max(dim=1)
    return Look(model, image, points, outputs, features, best.sqrt(), label + 1)


def segment_at(model: nn.Module, image: Tensor, x: float, y: float, level: int | None = None) -> Any:
    """The mask that the model's location nearest to pixel (x, y) draws, with everything on the way.

    A CondInst gives a `Segment`; an AdaptIS, for which the pixel itself is the point, a `PointSegment`.

    image (3, H, W) in [0, 1]; level: of the pyramid (3 for P3), or None for that whose nearest location has the highest
    score. Errors: ValueError for a pixel off the image or a level without locations, TypeError for an unknown model.
    Source: condinst:eq-2.
    """
    return look(model, image).segment_at(x, y, level)


def redraw(segment: Segment, theta: Tensor | None = None, origin: tuple[float, float] | None = None) -> Segment:
    """The same features and scale, drawn with another theta (P,), or with the coordinates' origin (x, y) elsewhere.

    `redraw(a, theta=b.theta)` swaps the filters of two instances, `redraw(a, origin=(x, y))` moves where one looks.
    Level, label and score stay those of the segment. Absolute coordinates, or none, have no origin to move.
    """
    theta = segment.theta if theta is None else theta
    origin = segment.location if origin is None else (float(origin[0]), float(origin[1]))
    coordinates, _, activations, logits, mask = segment.seen.draw(theta, origin, segment.scale)
    return segment._replace(
        theta=theta, location=origin, coordinates=coordinates, activations=activations, logits=logits, mask=mask
    )


def coordinate_maps(
    head: DynamicMaskHead, features: Tensor, center: Tensor, scale: Tensor, stride: int
) -> Tensor | None:
    """The maps (2, H, W) that a mask head reads beside features (C, H, W), or None; center (1, 2), scale (1,)."""
    size = (features.shape[-2], features.shape[-1])
    if head.coordinates == "relative":
        return relative_coordinates(size, stride, center, scale)[0]
    return absolute_coordinates(size, stride, features.device) if head.coordinates == "absolute" else None


def layer_by_layer(head: DynamicMaskHead, features: Tensor, theta: Tensor, coordinates: Tensor | None) -> list[Tensor]:
    """The mask head as the paper draws it, on maps that are really there: each layer's output (channels, H, W).

    ReLU follows every layer but the last, whose output is the logits (1, H, W). Source: condinst:controller.
    """
    inputs = [] if coordinates is None else [coordinates.to(features)]
    x = torch.cat([*inputs, features] if head.use_features else inputs)  # (2 + C, H, W)
    weights, biases = split_parameters(theta[None].to(x), head.channels)
    activations = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        x = torch.einsum("oi,ihw->ohw", weight[0], x) + bias[0][:, None, None]
        x = x.relu() if i < len(weights) else x
        activations.append(x)
    return activations


def describe(segment: Segment | PointSegment, class_names: Sequence[str] = ()) -> str:
    """One line: "P3, stride 8, location (44, 60), square 0.93, mask 612 pixels"; class_names: of labels 1, 2, ..."""
    x, y = segment.location
    name = class_names[segment.label - 1] if segment.label <= len(class_names) else f"class {segment.label}"
    if isinstance(segment, PointSegment):
        return f"point ({x:g}, {y:g}), {name} {segment.score:.2f}, mask {int(segment.mask.sum())} pixels"
    where = f"P{segment.level}, stride {segment.stride}, location ({x:g}, {y:g})"
    return f"{where}, {name} {segment.score:.2f}, mask {int(segment.mask.sum())} pixels"


# ------------------------------------------------------------------------------------------------------------ targets


class Targets(NamedTuple):
    """Which locations of one image answer for which object.

    points: the locations; assignment: of a batch of one; positives: how many on each level; per_object: how many each
    object has; missed: indices of the objects that have none; ambiguous: how many locations could answer for more than
    one object, and take the smallest.
    """

    points: Points
    assignment: Assignment
    positives: list[int]
    per_object: list[int]
    missed: list[int]
    ambiguous: int


def targets_of(
    image: Tensor,
    target: Mapping[str, Any],
    strides: Sequence[int] = (8, 16, 32),
    ranges: Sequence[float] = (32, 64),
    radius: float = 1.5,
    center: Literal["box", "mass"] = "box",
) -> Targets:
    """The targets that FCOS would train with on an image (3, H, W).

    target: boxes (M, 4) xyxy, labels (M,) from 1, and masks for center "mass"; strides: of the levels; ranges: upper
    ends, in pixels, of all levels' ranges but the last; radius: of the centre region, in strides, 0 for the whole box.
    Errors: ValueError unless strides and ranges rise and there is one range less than strides.
    Source: condinst:center-region, slides:fcos-ambiguity, slides:fcos-recall.
    """
    for name, values in (("strides", strides), ("ranges", ranges)):
        if any(not a < b for a, b in itertools.pairwise((0, *values))):
            raise ValueError(f"{name} must be rising numbers of pixels, not {tuple(values)}")
    if len(ranges) != len(strides) - 1:
        raise ValueError(f"{len(strides)} strides need {len(strides) - 1} ends of ranges, not {len(ranges)}")
    height, width = image.shape[1:]
    maps = [torch.zeros(1, -(-height // s), -(-width // s), device=target["boxes"].device) for s in strides]
    reach = list(zip((-1, *ranges), (*ranges, torch.inf), strict=True))
    # Called through their module, where `deviate` exchanges them.
    points = fcos.make_points(maps, strides, reach)
    boxes, labels, centers = fcos.pad_targets([target], center)
    assignment = fcos.assign_targets(points, boxes, labels, centers, radius)

    positive = assignment.labels[0] > 0
    owners = assignment.matched[0, positive]
    count = len(target["labels"])
    per_object = torch.bincount(owners, minlength=count).tolist()
    # Each object as if it were alone in the image: a batch of as many images as objects.
    alone = fcos.assign_targets(points, boxes[0][:, None], labels[0][:, None], centers[0][:, None], radius)
    return Targets(
        points,
        assignment,
        [int((positive & (points.level == k)).sum()) for k in range(len(strides))],
        per_object,
        [i for i in range(count) if not per_object[i]],
        int(((alone.labels > 0).sum(dim=0) > 1).sum()),
    )


def describe_targets(found: Targets) -> str:
    """One line: "37 positive locations (20 + 12 + 5), 1 of 4 objects without a location, 3 ambiguous locations"."""
    levels = " + ".join(map(str, found.positives))
    objects = f"{len(found.missed)} of {len(found.per_object)} objects without a location"
    return f"{sum(found.positives)} positive locations ({levels}), {objects}, {found.ambiguous} ambiguous locations"
