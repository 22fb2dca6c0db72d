"""The bench of training, on a CPU with small models and images; on a GPU where there is one."""

import json
from typing import Any

import pytest
import torch

from condinst_edu import bench
from condinst_edu.bench import Bench
from condinst_edu.bench import training as bench_training
from condinst_edu.condinst import CondInst
from condinst_edu.errors import UserError
from condinst_edu.mask_rcnn import MaskRCNN
from condinst_edu.progress import progress_bar
from condinst_edu.recipes.shapes import shapes_condinst, shapes_mask_rcnn


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> Any:
        condinst = CondInst(80, **shapes_condinst().model_args)
        torch.nn.init.constant_(condinst.fcos.head.box_distances.bias, 4)  # type: ignore[arg-type]
        return condinst, MaskRCNN(80, **shapes_mask_rcnn().model_args)

    monkeypatch.setattr(bench_training, "full_size_models", models)


def test_bench_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small(monkeypatch)
    with progress_bar(False) as progress:
        training, inference, head = bench_training.bench_training(2, progress, batch=3, size=(64, 96), count=4)
    assert [variant.name for variant in training.variants] == ["Mask R-CNN", "CondInst"]
    for variant in training.variants:
        assert variant.median_ms is not None
        assert variant.facts["images_per_second"] == pytest.approx(3000 / variant.median_ms)
        assert 0.001 < variant.facts["memory_gb"] < 1
    assert inference.what == "one image of 64x96, 4 detections with masks"
    assert (inference["CondInst"].speedup or 0) > 0
    assert 0 < head.variants[0].facts["share"] < 1
    with progress_bar(False) as progress, pytest.raises(UserError, match="--batch and --size are positive"):
        bench_training.bench_training(1, progress, batch=0)


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def few(*arguments: Any, **options: Any) -> Any:
        return inner(*arguments, **{**options, "count": 3})

    small(monkeypatch)
    inner = bench_training.bench_training
    monkeypatch.setattr(bench_training, "bench_training", few)
    bench.run_bench(Bench("training", runs=1, size=(64, 96), batch=1))
    assert "CondInst trains" in capsys.readouterr().out
    bench.run_bench(Bench("training", runs=1, size=(64, 96), batch=1, json=True))
    assert json.loads(capsys.readouterr().out)["groups"][0]["name"] == "training"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_waits_once_on_a_gpu() -> None:
    with progress_bar(False) as progress:
        training, *_ = bench_training.bench_training(2, progress, "cuda", batch=2, size=(480, 640), count=10)
    assert training["CondInst"].facts["waits"] <= 1
