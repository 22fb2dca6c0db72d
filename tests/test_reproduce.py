"""Tables of the papers in miniature, and the two commands on the papers: reproduce and trace."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import fails
from test_engine import SAMPLE

from condinst_edu.engine.recipe import build_model, override_model
from condinst_edu.papers import ITEMS, TABLES, reproduce_toy
from condinst_edu.papers import reproduce as miniature
from condinst_edu.papers.reproduce import DEFAULT, MINIATURES, STATS, Settings, base_recipe, reproduce
from condinst_edu.papers.reproduce_toy import TOY_TABLES
from condinst_edu.recipes import get_recipe

SMALL = (
    "backbone_options.widths=(4, 4, 8, 8, 8)",
    "channels=8",
    "head.tower_convs=1",
    "bottom.channels=8",
    "bottom.convs=1",
)


def test_every_row_of_a_miniature_builds() -> None:
    """As many rows as in the paper, in most tables one of them the recipe's own, each a model that can be built."""
    for name, rows in MINIATURES.items():
        small = SMALL if name.startswith("condinst:") else (*SMALL[:3], "basis.width=4")
        recipe = base_recipe(Settings(1, 1, SAMPLE, Path("unused"), extra=small), TABLES[name])
        assert ITEMS[name].miniature
        assert len(rows) == len(TABLES[name].rows)
        assert rows.count(DEFAULT) == (name not in ("dr1mask:table-1", "dr1mask:table-3"))  # theirs is vector attention
        for row in rows:
            row_recipe = override_model(recipe, row.train + row.test)
            build_model(row_recipe.model, 4, row_recipe.model_args)


def test_rows_follow_the_papers_rows() -> None:
    """The arguments of a row say what the paper's row says; the recipe's own row is where the paper's default is."""
    for name, key in (("table-1a", "depth"), ("table-1b", "width"), ("table-2", "C_bottom"), ("table-4", "factor")):
        printed = [row[key] for row in map(TABLES[f"condinst:{name}"].row, range(len(TABLES[f"condinst:{name}"].rows)))]
        default = {"depth": 3, "width": 8, "C_bottom": 8, "factor": 2}[key]
        ours = [int(row.train[0].split("=")[1]) if row.train else default for row in MINIATURES[f"condinst:{name}"]]
        assert ours == printed


def test_reproduce_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(seeds=2, iterations=2, data=SAMPLE, out=tmp_path, extra=SMALL)
    result = reproduce("condinst table-5", settings)
    assert json.loads((tmp_path / "condinst-table-5.json").read_text()) == json.loads(json.dumps(result))
    assert [row["paper"]["NMS"] for row in result["rows"]] == ["box", "mask"]
    assert all(len(row["ours"]["AP"]["each"]) == 2 for row in result["rows"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["condinst-table-5.json", "seed0", "seed1"]  # one model
    assert result["trained_before"] == 0
    again = reproduce("condinst:table-4", settings)  # its middle row is the model that is there
    assert again["trained_before"] == 2
    assert again["rows"][1]["ours"] == result["rows"][0]["ours"]
    assert [row["train"] for row in again["rows"]] == [("factor=1",), (), ("factor=4",)]
    printed = capsys.readouterr().out
    assert "1/4" in printed
    assert "bottom branch is on P2" in again["note"]
    assert "35.6" in printed


def test_mask_nms_is_used_where_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second row of Table 5 removes duplicates by their masks."""
    used: list[str] = []

    def note(model: Any, *_: object, **__: object) -> dict[str, Any]:
        used.append(model.nms)
        return {"mask": dict.fromkeys(STATS, 0.5)}

    monkeypatch.setattr(miniature, "evaluate", note)
    result = reproduce("condinst:table-5", Settings(1, 1, SAMPLE, tmp_path, extra=SMALL))
    assert used == ["box", "mask"]
    assert result["rows"][0]["ours"]["AP"] == {"mean": 50.0, "std": 0.0, "each": [50.0]}


def test_shapes_are_written_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def note(out: Path, **_: object) -> None:
        assert out == tmp_path / "data"
        raise Enough

    monkeypatch.setattr(miniature, "write_shapes", note)
    with pytest.raises(Enough):
        reproduce("condinst:table-1a", Settings(1, 1, tmp_path / "data", tmp_path / "out"))


# ------------------------------------------------------------------------------------------------------- command line


def test_bad_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["trace", "condinst:eq-22"], "did you mean condinst:eq-2")
    fails(capsys, ["reproduce", "condinst:tabel-3"], "did you mean condinst:table-3")
    fails(capsys, ["reproduce", "condinst:table-6"], "it has no miniature: choose from condinst:table-1a")
    fails(capsys, ["reproduce", "dr1mask:table-2"], "its miniature is not built yet: choose from condinst:table-1a")
    fails(capsys, ["reproduce", "condinst:table-5", "--seeds", "0"], "seeds and iterations start at 1, not 0 and 1000")
    fails(capsys, ["reproduce", "condinst:table-5", "--set", "colour=red"], "condinst has no argument 'colour'")
    (tmp_path / "file").write_text("")
    fails(capsys, ["reproduce", "condinst:table-5", "--out", str(tmp_path / "file" / "x")], "cannot write")


TOY = ("backbone_options.width=4", "backbone_options.depth=1", "branch_width=4", "points=2", "limit=2")


def test_toy_rows_build_and_follow_the_paper() -> None:
    """Every row is a model that can be built; Table 7's first four say what the paper's say."""
    recipe = override_model(get_recipe(reproduce_toy.RECIPE), TOY)
    for rows in TOY_TABLES.values():
        for _, settings in rows:
            row = override_model(recipe, settings)
            build_model(row.model, 1, row.model_args)
    names = {"NFL": "nfl", "FL": "focal", "BCE": "bce"}
    for i, settings in TOY_TABLES["adaptis:table-7"][:4]:
        printed = TABLES["adaptis:table-7"].row(i or 0)
        args = override_model(recipe, settings).model_args
        assert args.get("loss", "nfl") == names[str(printed["loss"])]
        assert args.get("head", {}).get("coordinates", True) == printed["relative CoordConv"]


def test_toy_table_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = reproduce_toy.reproduce_toy("adaptis table-1", tmp_path, iterations=2, extra=TOY, images=2)
    assert json.loads((tmp_path / "adaptis-table-1.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["rows"][0]["ours"]) == {"AP@0.5", "AP@0.7", "AP@0.8", "AP@0.9"}
    printed = capsys.readouterr().out
    for figure in ("74.6", "5.8", "99.6", "97.5"):
        assert figure in printed
    assert "2 test images" in printed


def test_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(reproduce_toy, "choose_threads", lambda recipe: 4.0)
    recipe = get_recipe(reproduce_toy.RECIPE)
    seconds = 600 - reproduce_toy.SCORING_SECONDS
    assert seconds * 4 - 20 <= reproduce_toy.iterations_within(recipe, 600, 1) <= seconds * 4
    for table, time, sentence in (
        ("adaptis:table-7", "2m", "too few for 6 models"),
        ("adaptis:table-1", "soon", "written as 90s, 10m or 1.5h"),
        ("condinst:table-5", "10m", "--budget is for adaptis"),
    ):
        fails(capsys, ["reproduce", table, "--budget", time, "--out", str(tmp_path)], sentence)
