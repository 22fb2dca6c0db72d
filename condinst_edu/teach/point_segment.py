"""What AdaptIS draws for a point, with everything on the way: the counterpart of `Look` and `Segment` of a CondInst.

The backbone runs once; each point then costs the head alone, so a click is answered in some milliseconds.

Legend: C channels, V numbers of a vector, H, W image, h, w map.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from condinst_edu.adaptis import AdaptIS, Seen, point_features
from condinst_edu.adaptis_greedy import class_of_mask, mean_confidence
from condinst_edu.coordinates import relative_coordconv
from condinst_edu.layers.images import Size
from condinst_edu.teach.xray import evaluating


class PointSegment(NamedTuple):
    """The mask that AdaptIS draws for one point.

    location: the point (x, y) in pixels; stride: of the features, in pixels; label (from 1) and score: class of the
    mask, and its mean probability; embedding (C,): the features at the point; vector (V,): what the controller makes of
    it; scale, shift (C,): what AdaIN makes of that; coordinates (2 or 3, h, w), or None; before, after (C, h, w): the
    maps that AdaIN reads and gives; logits and probability (H, W); mask (H, W) bool; seen: where it is from.
    """

    location: tuple[float, float]
    stride: int
    label: int
    score: float
    embedding: Tensor
    vector: Tensor
    scale: Tensor
    shift: Tensor
    coordinates: Tensor | None
    before: Tensor
    after: Tensor
    logits: Tensor
    probability: Tensor
    mask: Tensor
    seen: "PointLook"


@dataclass(frozen=True, eq=False)
class PointLook:
    """AdaptIS's run on one image (3, H, W), which answers for any point; it has no levels."""

    model: AdaptIS
    image: Tensor
    seen: Seen
    levels: tuple[int, ...] = ()

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.seen.size

    def surest_pixel(self) -> tuple[int, int]:
        """(x, y) of the best proposal among the pixels of things."""
        y, x = divmod(int((self.seen.proposals * ~self.seen.stuff).argmax()), self.size[1])
        return x, y

    @torch.no_grad()
    def segment_at(self, x: float, y: float, level: int | None = None) -> PointSegment:
        """See `segment_at`; there is no level to choose."""
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"pixel ({x:g}, {y:g}) is off the image, whose pixels go to ({width - 1}, {height - 1})")
        if level is not None:
            raise ValueError(f"AdaptIS has no levels: level must be None, not {level!r}")
        model, head, features = self.model, self.model.head, self.seen.features[:1]
        image, point = torch.zeros(1, dtype=torch.int64), features.new_tensor([[float(x), float(y)]])
        maps: dict[str, Tensor] = {}
        hook = head.adain.register_forward_hook(lambda _, args, out: maps.update(before=args[0][0], after=out[0]))
        try:
            with evaluating(model):
                logits = model.logits(features, image, point)[:, :height, :width]
                vector = head.vectors(features, image, point)
        finally:
            hook.remove()
        probability = logits.sigmoid()
        mask = probability > model.threshold
        label, _ = class_of_mask(self.seen.semantic[model.stuff :], mask)
        size = (features.shape[-2], features.shape[-1])
        return PointSegment(
            location=(float(x), float(y)),
            stride=model.stride,
            label=int(label) + 1,
            score=float(mean_confidence(probability, mask)),
            embedding=point_features(features, image, point, model.stride)[0],
            vector=vector[0],
            scale=head.adain.scale(vector)[0],
            shift=head.adain.shift(vector)[0],
            coordinates=relative_coordconv(size, model.stride, point, head.radius, head.distance)[0]
            if head.maps
            else None,
            before=maps["before"],
            after=maps["after"],
            logits=logits[0],
            probability=probability[0],
            mask=mask[0],
            seen=self,
        )


def look_adaptis(model: AdaptIS, image: Tensor) -> PointLook:
    """Run AdaptIS once on an image (3, H, W) in [0, 1]; its training mode is left as it was."""
    with evaluating(model):
        return PointLook(model, image, model.look(image))
