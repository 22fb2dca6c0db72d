"""The bench of whole models: that it measures what it says, on small images."""

from typing import Any

import pytest
import torch
from helpers import same

from condinst_edu import bench
from condinst_edu.bench import Bench
from condinst_edu.bench.inference import CANDIDATES, bench_inference, check_count, diamond, threshold_for
from condinst_edu.coordinates import relative_coordinates
from condinst_edu.errors import UserError
from condinst_edu.mask_head import DynamicMaskHead
from condinst_edu.progress import progress_bar


def test_diamond() -> None:
    centers, scales = torch.tensor([[20.0, 12], [4, 28]]), torch.tensor([64.0, 8])
    logits = DynamicMaskHead()(torch.randn(8, 5, 7), diamond().expand(2, -1), centers, scales, 8)
    same(logits, 0.6 - relative_coordinates((5, 7), 8, centers, scales).abs().sum(dim=1), 1e-5)


def test_threshold_lets_as_many_pass() -> None:
    scores = torch.rand(100, 80, generator=torch.Generator().manual_seed(0))
    assert (scores > threshold_for(scores)).sum() == CANDIDATES
    assert threshold_for(torch.tensor([0.1, 0.4, 0.3])) == pytest.approx(0.1)


def test_bench_inference() -> None:
    with progress_bar(False) as progress:
        (group,) = bench_inference(2, progress, size=(60, 90), short_side=128, count=7)
    names = ["torchvision Mask R-CNN", "torchvision FCOS", "FCOS", "CondInst, 7 instances", "CondInst, 1 instance"]
    assert [variant.name for variant in group.variants] == names
    assert group.what == "an image of 60x90 seen at 128x192, results at its own size"
    for variant in group.variants:
        assert len(variant.times_ms) == 2
        assert variant.median_ms is not None
        reference = group["torchvision FCOS"].median_ms
        assert variant.facts["ratio_to_torchvision_fcos"] == pytest.approx(variant.median_ms / (reference or 0))
    assert group["CondInst, 7 instances"].goal["ratio_to_mask_rcnn"] == 0.75


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def small(runs: int, progress: Any, size: tuple[int, int]) -> Any:
        return bench_inference(runs, progress, size, short_side=96, count=2)

    monkeypatch.setattr("condinst_edu.bench.inference.bench_inference", small)
    bench.run_bench(Bench("inference", runs=1, size=(48, 64)))
    assert "CondInst takes" in capsys.readouterr().out


def test_what_cannot_be() -> None:
    with progress_bar(False) as progress, pytest.raises(UserError, match="--size is positive"):
        bench_inference(1, progress, size=(0, 10))
    with pytest.raises(UserError, match="FCOS finds 3 instances, not 4"):
        check_count("FCOS", 3, 4)
