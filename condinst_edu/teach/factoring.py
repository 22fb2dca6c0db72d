"""What a DR1Mask with factored attention does for each instance: projected crop, factors, attention maps, the mask.

Legend: D bases, K projected ones, r factors of each, R cells along a side of a map, Q along a side of a crop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from condinst_edu.blendmask import crop_bases, paste_masks
from condinst_edu.dr1mask import DR1Mask, FactoredAttention
from condinst_edu.layers.images import make_batch
from condinst_edu.teach.pictures import draw_image, draw_map, new_figure, spotlight


class Factored(NamedTuple):
    """One instance of an image, and everything on the way to its mask.

    box (4,) as predicted, xyxy in pixels; label, score; kernel t (K, D); factors s (K, r); projected R' (K, Q, Q);
    maps (K, R, R); logits (Q, Q); mask (H, W) bool.
    """

    box: Tensor
    label: int
    score: float
    kernel: Tensor
    factors: Tensor
    projected: Tensor
    maps: Tensor
    logits: Tensor
    mask: Tensor


@torch.no_grad()
def factored_of(model: DR1Mask, image: Tensor) -> list[Factored]:
    """All instances that the model finds on an image (3, H, W) in [0, 1], by falling score.

    Errors: ValueError for a model with another attention.
    """
    attention = model.attention
    if not isinstance(attention, FactoredAttention):
        raise ValueError(f"this model has {type(attention).__name__}, not FactoredAttention")
    batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    found = model.fcos.detect(points, outputs, 0)
    embedding = model.fcos.head.top_at(outputs, points, 0, found.location)
    kernel, factors = embedding.split([attention.bases * attention.width, attention.bases * attention.rank], dim=1)
    kernel, factors = kernel.unflatten(1, (attention.bases, -1)), factors.unflatten(1, (attention.bases, -1))
    crops = crop_bases(model.features(batch, pyramid, outputs), [found.boxes], model.stride, model.size)
    projected, maps, logits = attention.project(crops, kernel), attention.maps(factors), attention(crops, embedding)
    masks = paste_masks(logits.sigmoid(), found.boxes, (image.shape[1], image.shape[2]))
    fields = (found.boxes, found.labels.tolist(), found.scores.tolist())
    return [Factored(*row) for row in zip(*fields, kernel, factors, projected, maps, logits, masks, strict=True)]


@torch.no_grad()
def with_factors(model: DR1Mask, instance: Factored, factors: Tensor) -> Factored:
    """The same instance with other factors s (K, r): their maps, logits and mask."""
    attention = model.attention
    assert isinstance(attention, FactoredAttention)
    maps = attention.maps(factors[None])  # (1, K, R, R)
    resized = torch.nn.functional.interpolate(maps, instance.projected.shape[-2:], mode="bilinear")[0]
    logits = (instance.projected * resized).sum(dim=0)
    size = (instance.mask.shape[0], instance.mask.shape[1])
    mask = paste_masks(logits.sigmoid()[None], instance.box[None], size)[0]
    return instance._replace(factors=factors, maps=maps[0], logits=logits, mask=mask)


def show_factored(image: Tensor, instances: Sequence[Factored], class_names: Sequence[str] = ()) -> Figure:
    """A row for each instance: its mask on the image (3, H, W), then its K attention maps and K projected crops."""
    bases = len(instances[0].maps)
    figure, axes = new_figure(len(instances), 1 + 2 * bases, 1.35, 1.55)
    for n, instance in enumerate(instances):
        row = axes[n * (1 + 2 * bases) :]
        draw_image(row[0], spotlight(image, instance.mask))
        name = class_names[instance.label - 1] if class_names else f"class {instance.label}"
        row[0].set_title(f"{name} {instance.score:.2f}", fontsize=9)
        for k in range(bases):
            draw_map(row[1 + k], instance.maps[k], f"Q{k + 1}", float(instance.maps.abs().max()))
            limit = float(instance.projected.abs().max())
            draw_map(row[1 + bases + k], instance.projected[k], f"R'{k + 1}", limit)
    return figure
