"""How models of AdaptIS's toy problem are scored: as in the paper's Table 1, on our own images."""

from collections.abc import Sequence

from torch import nn

from condinst_edu.datasets.coco import CocoDataset
from condinst_edu.engine.evaluate import Result, detect_all, mask_ap_at

THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
TEST_IMAGES = 200


def score_toy(model: nn.Module, dataset: CocoDataset, device: str = "cpu", progress: bool = False) -> dict[str, float]:
    """Mask AP in percent at Table 1's IoU thresholds: {"AP@0.5": ..., "AP@0.7": ..., "AP@0.8": ..., "AP@0.9": ...}.

    Source: adaptis:table-1.
    """
    return toy_ap(dataset, detect_all(model, dataset, device=device, progress=progress))


def toy_ap(dataset: CocoDataset, results: Sequence[Result]) -> dict[str, float]:
    """`score_toy` of results that are there already."""
    found = mask_ap_at(dataset, results, THRESHOLDS)
    return {f"AP@{threshold}": round(100 * value, 2) for threshold, value in found.items()}
