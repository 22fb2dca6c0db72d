"""What a BlendMask does for each instance that it finds: the crops of the bases, the attention, their sum, the mask.

Legend: K bases, a cells along a side of the attention, m cells along a side of a mask.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from condinst_edu.blendmask import BlendMask, crop_bases, merge_bases, paste_masks
from condinst_edu.fcos import to_output_size
from condinst_edu.layers.images import make_batch


class Blend(NamedTuple):
    """One instance of an image, and everything on the way to its mask.

    box (4,) as predicted and clipped (4,) to the image, xyxy in pixels; label, score; crops (K, m, m) of the bases;
    attention (K, a, a) as predicted; weights (K, m, m), the attention resized, which sum to 1 over the bases; logits
    (m, m); mask (H, W) bool.
    """

    box: Tensor
    clipped: Tensor
    label: int
    score: float
    crops: Tensor
    attention: Tensor
    weights: Tensor
    logits: Tensor
    mask: Tensor


@torch.no_grad()
def blends_of(model: BlendMask, image: Tensor) -> list[Blend]:
    """All instances that the model finds on an image (3, H, W) in [0, 1], by falling score."""
    size = (image.shape[1], image.shape[2])
    batch = make_batch([image], model.fcos.mean, model.fcos.std, model.fcos.divisor)
    pyramid, points, outputs = model.fcos.run(batch)
    found = model.fcos.detect(points, outputs, 0)
    clipped, keep = to_output_size(found.boxes, size, size)
    found, clipped = found.pick(keep), clipped[keep]
    crops = crop_bases(model.bases(pyramid), [found.boxes], model.stride, model.size)
    attention = model.attention_at(points, outputs, 0, found.location)
    labels, scores = found.labels.tolist(), found.scores.tolist()
    return [
        blended(found.boxes[i], clipped[i], labels[i], scores[i], crops[i], attention[i], size)
        for i in range(len(labels))
    ]


def blended(
    box: Tensor, clipped: Tensor, label: int, score: float, crops: Tensor, attention: Tensor, size: tuple[int, int]
) -> Blend:
    """The rest of an instance, from the crops of its bases (K, m, m) and its attention (K, a, a)."""
    weights = F.interpolate(attention[None], crops.shape[-2:], mode="bilinear").softmax(dim=1)[0]
    logits = merge_bases(crops[None], attention[None])
    mask = paste_masks(logits.sigmoid(), clipped[None], size)[0]
    return Blend(box, clipped, label, score, crops, attention, weights, logits[0], mask)


def with_attention(blend: Blend, attention: Tensor) -> Blend:
    """The same instance, blended with another attention (K, a', a')."""
    size = (blend.mask.shape[0], blend.mask.shape[1])
    return blended(blend.box, blend.clipped, blend.label, blend.score, blend.crops, attention, size)


def averaged(attention: Tensor, cells: int) -> Tensor:
    """Attention (K, a, a) averaged to (K, cells, cells); 1 leaves one number for each base, as YOLACT has."""
    return F.adaptive_avg_pool2d(attention, cells)


def truncated(attention: Tensor, rank: int) -> Tensor:
    """Attention (K, a, a), each base's matrix replaced by the nearest one of this rank."""
    u, s, v = torch.linalg.svd(attention, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
