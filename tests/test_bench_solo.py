"""The bench of SOLO, with small models and images."""

import json
from typing import Any

import pytest

from condinst_edu import bench, bench_solo
from condinst_edu.bench import Bench
from condinst_edu.errors import UserError
from condinst_edu.progress import progress_bar
from condinst_edu.recipes.shapes import shapes_solo
from condinst_edu.solo import SOLO, DecoupledHead, DecoupledSOLO


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> dict[str, SOLO]:
        args: dict[str, Any] = shapes_solo().model_args
        light = {**args, "head": {**args["head"], "light": True}}
        kinds = [(SOLO, args), (DecoupledSOLO, args), (DecoupledSOLO, light)]
        return {name: kind(80, **a) for name, (kind, a) in zip(bench_solo.NAMES, kinds, strict=True)}

    monkeypatch.setattr(bench_solo, "full_size_models", models)


@pytest.mark.usefixtures("small")
def test_bench_solo() -> None:
    with progress_bar(False) as progress:
        groups = bench_solo.bench_solo(2, progress, size=(96, 160), batch=2)
    assert [group.name for group in groups] == ["head", "inference", "training"]
    head, inference, training = groups
    for group in groups:
        assert [variant.name for variant in group.variants] == list(bench_solo.NAMES)
    assert head["SOLO"].facts["maps"] == 12**2 + 8**2
    assert head["Decoupled SOLO"].facts["maps"] == 2 * (12 + 8)
    assert head["SOLO"].facts["output_mb"] == 4 * (144 * 48 * 80 + 64 * 24 * 40) / 1e6
    for variant in inference.variants:
        assert variant.facts["masks"] > 10
    for group in (inference, training):
        assert group["SOLO"].facts["memory_gb"] > group["Decoupled light SOLO"].facts["memory_gb"] > 0
    with progress_bar(False) as progress, pytest.raises(UserError, match="--batch and --size are positive"):
        bench_solo.bench_solo(1, progress, batch=0)


def test_full_size_models_are_the_published_ones() -> None:
    import torch

    with torch.device("meta"):
        models = bench_solo.full_size_models()
    assert [isinstance(model.head, DecoupledHead) for model in models.values()] == [False, True, True]


@pytest.mark.usefixtures("small")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    bench.run_bench(Bench("solo", runs=1, size=(64, 96), batch=1))
    assert "Decoupled SOLO puts out 40 mask maps instead of 208" in capsys.readouterr().out
    bench.run_bench(Bench("solo", runs=1, size=(64, 96), batch=1, json=True))
    assert json.loads(capsys.readouterr().out)["groups"][0]["name"] == "head"
