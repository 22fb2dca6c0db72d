"""The shipped tiny models: whole, small, as their cards tell; made, stored and found broken as they should be."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from condinst_edu.cli import run
from condinst_edu.datasets.shapes_coco import VAL_START, write_shapes
from condinst_edu.errors import UserError
from condinst_edu.teach import tiny

FIELDS = {"name", "about", "command", "seed", "iterations", "seconds", "threads", "torch", "data", "parameters"}
FIELDS |= {"bytes", "sha256", "metrics"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, so that nothing shipped is written over."""
    monkeypatch.setattr(tiny, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", tiny.TINY)
def test_shipped_model_is_whole_and_small(name: str) -> None:
    assert tiny.broken(name) is None
    card = tiny.read_card(name)
    assert card.keys() == FIELDS
    assert card["command"] == f"condinst-edu weights {name}"
    path = tiny.tiny_folder() / f"{name}.safetensors"
    assert card["bytes"] == path.stat().st_size < 3_000_000
    trained = tiny.load_tiny(name)
    assert not trained.model.training
    assert card["parameters"] == sum(p.numel() for p in trained.model.parameters())
    recipe = tiny.recipe_of(name, Path(trained.recipe["data"]))
    assert trained.recipe == json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    assert trained.recipe["data"] == "data/shapes-full"


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.TINY)
def test_shipped_model_scores_what_its_card_tells(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    scores = tiny.score_tiny(name, 200)
    for kind, values in tiny.read_card(name)["metrics"].items():
        for stat, value in values.items():  # another processor rounds otherwise, which can turn a few matches
            assert scores[kind][stat] == pytest.approx(value, abs=0.003), (kind, stat)


def test_held_out_images_are_those_of_the_cards(folder: Path) -> None:
    from condinst_edu.datasets.shapes import generate

    images = tiny.held_out(3)
    for k in range(3):
        assert torch.equal(images[k][0].permute(1, 2, 0), torch.from_numpy(generate(VAL_START + k, seed=0).image))


@pytest.fixture
def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The card of a model that was trained for two iterations."""
    monkeypatch.setitem(tiny.TINY, "condinst", tiny.TINY["condinst"]._replace(iterations=2))
    real = write_shapes
    monkeypatch.setattr(tiny, "write_shapes", lambda out, **_: real(out, train=8, val=2, show_progress=False))
    threads = torch.get_num_threads()
    card = tiny.make_tiny("condinst", folder / "shapes", folder / "work")
    torch.set_num_threads(threads)
    return card


def test_made_model_is_stored_with_its_card(made: dict[str, Any], folder: Path) -> None:
    assert made.keys() == FIELDS
    assert made["iterations"] == 2
    assert tiny.broken("condinst") is None
    assert tiny.read_card("condinst") == made
    stored = tiny.load_tiny("condinst").model.state_dict()
    trained = tiny.load_model(folder / "work" / "condinst" / "model.safetensors").model.state_dict()
    assert stored.keys() == trained.keys()
    for name, value in stored.items():
        expected = (
            trained[name].half().to(value.dtype) if value.is_floating_point() and value.dim() > 1 else trained[name]
        )
        assert torch.equal(value, expected), name


def test_what_is_broken_is_said(made: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.tiny_folder() / "condinst.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "damaged" in str(tiny.broken("condinst"))
    with pytest.raises(UserError, match="`condinst-edu weights condinst` trains it again"):
        tiny.load_tiny("condinst")
    path.unlink()
    assert str(tiny.broken("condinst")) == f"no such file: {path}"
    path.write_bytes(whole)
    path.with_suffix(".json").write_text("{")
    assert "is no card" in str(tiny.broken("condinst"))
    assert "there is no tiny model 'x'" in str(tiny.broken("x"))
    tiny.show_tiny(["condinst"])
    assert "no card" in " ".join(capsys.readouterr().out.split())


def test_a_model_that_is_too_large_is_not_stored(made: dict[str, Any], folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tiny, "LIMIT", 1000)
    with pytest.raises(UserError, match="fewer than 1000"):
        tiny.store(folder / "work" / "condinst" / "model.safetensors", folder / "large.safetensors")
    assert not (folder / "large.safetensors").exists()


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in tiny.TINY)
    assert run(["weights", "condinst", "nonsense"]) == 2
    assert "there is no tiny model 'nonsense'" in capsys.readouterr().err
