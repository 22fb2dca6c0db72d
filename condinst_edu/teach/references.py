"""References of exercises that the library has only inside something larger, or takes from torchvision.

Legend: N instances, L locations, K classes.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.adaptis_greedy import aggregate


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    """Sum of the focal loss of all entries: alpha_t * (1 - p_t)^gamma * -log p_t.

    logits, targets (L, K), targets 0 or 1; alpha weights the targets of 1, 1 - alpha those of 0. Returns one number.
    Source: condinst:eq-1 (the class term of L_fcos).
    """
    return sigmoid_focal_loss(logits, targets, alpha, gamma, reduction="sum")


def count_parameters(channels: Sequence[int]) -> int:
    """How many numbers the controller predicts for layers with these channels, (10, 8, 8, 1) being the paper's.

    The number is `DynamicMaskHead.num_parameters`. Source: condinst:controller.
    """
    return sum(o * (i + 1) for i, o in itertools.pairwise(channels))


def fold_coordinates(weight: Tensor, bias: Tensor, centers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Layer 1's weight and bias on plain pixel coordinates, equal to the given ones on relative coordinates.

    weight (N, out, 2): of x and y; bias (N, out); centers (N, 2) and scales (N,) in pixels. Returns both, so that
    new weight @ pixel + new bias = weight @ ((pixel - center) / scale) + bias. Source: condinst:relative-coordinates.
    """
    folded = weight / scales[:, None, None]
    return folded, bias - (folded @ centers[:, :, None]).squeeze(-1)


def adain(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Adaptive instance normalisation with its scale and shift given: `AdaIN` makes these from a vector.

    x (N, C, H, W); scale, shift (N, C). Returns (N, C, H, W). Source: adaptis:adain.
    """
    return F.instance_norm(x, eps=eps) * scale[:, :, None, None] + shift[:, :, None, None]


def greedy(probabilities: Tensor, threshold: float = 0.4, overlap: float = 0.5) -> Tensor:
    """`aggregate` for masks that are there already: probabilities (N, H, W), taken in this order.

    Returns (H, W) int64, 0 for none, k for the k-th of those that are kept. Source: adaptis:greedy-aggregation.
    """
    order = iter(range(len(probabilities)))

    def propose(unknown: Tensor) -> Tensor:
        return torch.tensor([[float(k), 0.0] for k in itertools.islice(order, 1)]).reshape(-1, 2)

    def draw(points: Tensor) -> Tensor:
        return probabilities[points[:, 0].long()]

    start = torch.zeros(probabilities.shape[1:], dtype=torch.bool)
    return aggregate(draw, propose, start, threshold, overlap).instances
