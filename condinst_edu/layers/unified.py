"""DR1Mask's unified panoptic layer: stuff and things from one map by one matrix product (3.3).

Legend: D channels, N instances, S locations, E numbers of an embedding, H, W map, Q side of a crop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condinst_edu.layers.images import Size


def mean_embeddings(embeddings: Tensor, instance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One embedding for each instance: the mean of those of the locations that are assigned to it.

    embeddings (S, E); instance (S,), whose each is; count: of instances. Returns (count, E) and how many each has
    (count,); that of an instance without any is 0. Source: dr1mask:eq-9.
    """
    total = embeddings.new_zeros(count, embeddings.shape[1]).index_add(0, instance, embeddings)
    number = torch.bincount(instance, minlength=count)
    return total / number.clamp(min=1)[:, None], number


class PanopticLayer(nn.Module):
    """Logits of stuff and things by one matrix product: static weights for stuff, an embedding for each thing.

    width: D; num_stuff: classes of stuff. forward: F (D, H, W), W_thing (D, N) -> (num_stuff + N, H, W).
    It has no bias, as the equation. Source: dr1mask:panoptic-layer.
    """

    def __init__(self, width: int, num_stuff: int) -> None:
        super().__init__()
        self.stuff = nn.Parameter(0.01 * torch.randn(width, num_stuff))

    def forward(self, features: Tensor, things: Tensor) -> Tensor:
        weights = torch.cat([self.stuff, things], dim=1)  # (D, num_stuff + N)
        return (weights.T @ features.flatten(1)).unflatten(1, features.shape[1:])


OUTSIDE = -20.0  # logit of a thing beyond its box, where its mask is drawn within the box only


def paste_logits(logits: Tensor, boxes: Tensor, stride: int, size: Size) -> Tensor:
    """Mask logits (N, Q, Q) over boxes (N, 4) xyxy in pixels, read at the cells of a map: (N, *size).

    A cell lies at its middle, the pixel stride * (j + 1/2), as RoIAlign has it; beyond the box a logit is `OUTSIDE`.
    """
    x, y = (stride * (torch.arange(n, device=boxes.device) + 0.5) for n in (size[1], size[0]))
    u, v = (
        2 * (line - boxes[:, i, None]) / (boxes[:, i + 2] - boxes[:, i])[:, None].clamp(min=1e-6) - 1
        for i, line in ((0, x), (1, y))
    )  # (N, W), (N, H): -1 and 1 on the sides of the box
    grid = torch.stack(torch.broadcast_tensors(u[:, None], v[:, :, None]), dim=-1)  # (N, H, W, 2)
    pasted = F.grid_sample(logits[:, None], grid.to(logits), padding_mode="border", align_corners=False)[:, 0]
    return pasted.masked_fill((grid.abs() > 1).any(dim=-1), OUTSIDE)
