"""The demo, in miniature and as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condinst_edu.engine import demo
from condinst_edu.engine.checkpoint import load_model
from condinst_edu.errors import UserError


def test_demo_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 24)
    monkeypatch.setattr(demo, "VAL_IMAGES", 8)
    monkeypatch.setattr(demo, "CURVE_IMAGES", 2)
    for _ in range(2):  # the second time, the data is there and an earlier run is replaced
        result = demo.run_demo(tmp_path, minutes=1, iterations=8)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert set(result) >= {"mask_ap", "box_ap", "iterations", "train_seconds", "total_seconds", "threads"}
    assert result["iterations"] == 8
    assert [iteration for iteration, _ in result["curve"]] == [2, 4, 6]
    assert 0.5 < result["mask_ceiling"] < 1
    with Image.open(tmp_path / "demo.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 20  # not a blank sheet
    assert load_model(tmp_path / "run" / "model.safetensors").class_names[0] == "circle"
    printed = capsys.readouterr().out
    assert "demo.png" in printed
    assert "condinst-edu predict" in printed


def test_demo_fits_iterations_to_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "choose_threads", lambda recipe: 10.0)
    asked: list[int] = []

    class Enough(Exception):
        pass

    def note(recipe: demo.Recipe, *_: object) -> None:
        asked.append(recipe.iterations)
        raise Enough

    monkeypatch.setattr(demo, "write_shapes", lambda *_, **__: None)
    monkeypatch.setattr(demo, "train_with_curve", note)
    for minutes in (2, 4):
        with pytest.raises(Enough):
            demo.run_demo(tmp_path, minutes)
    assert asked == pytest.approx([10 * (120 - demo.FINISH_SECONDS), 10 * (240 - demo.FINISH_SECONDS)], abs=20)
    with pytest.raises(UserError, match="at least half a minute and at most 10000, not 0"):
        demo.run_demo(tmp_path, 0)


@pytest.mark.slow
def test_demo_learns_to_segment(tmp_path: Path) -> None:
    """A third of the default's iterations already reach what the demo promises."""
    torch.set_num_threads(2)
    assert demo.run_demo(tmp_path, minutes=3, iterations=1400)["mask_ap"] >= 0.60
