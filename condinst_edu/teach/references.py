"""References of exercises that the library has only inside something larger, or takes from torchvision.

Legend: N instances, L locations, K classes.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


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


def factored_attention(u: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    """Attention maps Q_k = U_k^T diag(s_k) V_k of DR1Mask's factored attention.

    u, v (K, r, a), shared by all instances; factors s (N, K, r). Returns (N, K, a, a). Source: dr1mask:eq-8.
    """
    return (u * factors[..., None]).mT @ v
