"""References of exercises that the library has only inside something larger, or takes from torchvision.

Legend: N instances, L locations, K classes, R processes, T iterations.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from condinst_edu.adaptis_greedy import aggregate
from condinst_edu.engine.recipe import Recipe
from condinst_edu.engine.schedule import rate_factor
from condinst_edu.panoptic import Counts, Panoptic, match_segments


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


def share_normalisers(counts: Tensor, least: float) -> Tensor:
    """What each of R processes divides its sums of K losses by; the means of the quotients are then those of one alone.

    counts (K, R): of each loss in each process, >= 0; least: the smallest that all processes together count as.
    Returns (K, R). `condinst_edu.layers.losses.normaliser` gives each process its own column.
    """
    return (counts.sum(dim=1, keepdim=True).clamp(min=least) / counts.shape[1]).expand(counts.shape)


def learning_rates(
    lr: float, iterations: int, warmup: int, factor: float, milestones: Sequence[int], batch_size: int
) -> Tensor:
    """The learning rate at each iteration: linear warm-up, a tenth from each milestone on, scaled to the batch.

    lr: the peak for 16 images; warmup: iterations over which the rate rises from `factor` times the peak; milestones:
    the first iterations at a tenth of the rate before; batch_size: of one step. Returns (T,) float64.
    """
    shares = tuple(milestone / iterations for milestone in milestones)
    recipe = Recipe(iterations=iterations, warmup=warmup / iterations, warmup_factor=factor, milestones=shares)
    factors = torch.tensor([rate_factor(recipe, i) for i in range(iterations)], dtype=torch.float64)
    return lr * batch_size / 16 * factors


def segment_counts(truth: Panoptic, found: Panoptic, isthing: Mapping[int, Any]) -> Tensor:
    """`match_segments` as a table: sum of the matches' IoU, tp, fp and fn of each category, (K, 4) float32."""
    return counts_table(match_segments(truth, found, isthing), isthing)


def counts_table(counts: Mapping[int, Counts], isthing: Mapping[int, Any]) -> Tensor:
    """Counts of an image as (K, 4) float32, in the order of the categories, zeros where there is nothing."""
    rows = [counts.get(category, Counts()) for category in isthing]
    return torch.tensor([[row.iou, row.tp, row.fp, row.fn] for row in rows])


def panoptic_numbers(iou: Tensor, tp: Tensor, fp: Tensor, fn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PQ, SQ and RQ of classes: sums of the matches' IoU and numbers of segments, each (K,), of which some segment is.

    SQ is 0 where nothing was found.
    """
    rq = tp / (tp + 0.5 * fp + 0.5 * fn)
    sq = iou / tp.clamp(min=1)
    return sq * rq, sq, rq


def decoupled_masks(columns: Tensor, rows: Tensor, k: Tensor) -> Tensor:
    """Masks (N, H, W), as probabilities, of cells k (N,) of a grid: the product of a row's and a column's.

    columns, rows (S, H, W): mask logits. `DecoupledHead.cell_masks` is the same for a batch.
    Source: slides:decoupled-solo.
    """
    return columns[k % len(columns)].sigmoid() * rows[k // len(columns)].sigmoid()
