"""The page of all tables in miniature: from made-up results, and what the repository holds."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers import ROOT

from condinst_edu.errors import UserError
from condinst_edu.papers import reproduced
from condinst_edu.papers.miniatures import MINIATURES, label
from condinst_edu.papers.reproduced import all_stored, page, stored, verdicts, write_page


def made_up(name: str, scores: list[dict[str, list[float]]]) -> dict[str, Any]:
    """A result with these figures in its rows."""
    card = {"command": f"condinst-edu reproduce {name}", "date": "2000-01-01", "recipe": "r", "start": "s", "data": "d"}
    numbers = {"seeds": 3, "iterations": 7, "batch": 8, "models": 2, "seconds": 90.0, "threads": [1], "torch": ["2"]}
    rows = [
        {"name": label(name, i), "train": list(row.train), "test": list(row.test), "scores": scores[i]}
        for i, row in enumerate(MINIATURES[name].rows)
    ]
    return {"table": name, **card, **numbers, "device": "cpu", "rows": rows}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stored tables: one whose first claim shows, one whose only score the paper does not have."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(reproduced, "RESULTS", folder)
    factor = [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0], [2.5, 7.5, 8.5]]
    made = made_up("condinst:table-4", [{"AP": row, "APs": row[::-1], "box AP": row} for row in factor])
    (folder / "condinst-table-4.json").write_text(json.dumps(made))
    toy = [
        [{"AP@0.5": [v + seed for seed in range(3)]} for v in (50.0, 40.0, 50.5, 60.0, 1.0, 1.0)][i] for i in range(6)
    ]
    (folder / "adaptis-table-7.json").write_text(json.dumps(made_up("adaptis:table-7", toy)))
    return folder


def test_page_has_figures_verdicts_and_cards(results: Path, tmp_path: Path) -> None:
    text = page(tmp_path / "page")
    assert "| factor 2, 1/4 | 35.6 | 18.0 | 8.0 ± 1.0 | 8.0 ± 1.0 |" in text
    assert "| Masks have to be upsampled: factor 2 is ahead of 1. | AP | +1.0 | +6.0 | **shows** |" in text
    assert "| Factor 4 is worse than 2 for small objects. | APs | +1.1 | +1.8 | **within the spread** |" in text
    assert "| NFL is ahead of FL. | PQ, ours AP@0.5 | +3.1 | -0.5 | **within the spread** |" in text
    assert "| NFL is slightly ahead of BCE. | PQ, ours AP@0.5 | +0.3 | -10.0 | **does not show** |" in text
    assert "`condinst-edu reproduce condinst:table-4`: 3 seeds, 7 iterations of 8 images (d)" in text
    assert "| [condinst:table-4](#condinsttable-4) | 3 | 4 | 3 | 0 | 1 | 0 |" in text
    assert "| [adaptis:table-7](#adaptistable-7) | 3 | 3 | 1 | 1 | 1 | 0 |" in text
    what_does_not = text.partition("## What does not show")[2].partition("\n## ")[0]
    assert what_does_not.count("\n- ") == 3
    assert "- `adaptis:table-7`: NFL is slightly ahead of BCE. **Does not show.**" in what_does_not


def test_tables_of_the_page_are_whole(results: Path, tmp_path: Path) -> None:
    """Every row of a Markdown table has as many cells as its head."""
    for block in re.findall(r"(?:^\|.*\n)+", page(tmp_path), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_plots_have_a_point_for_each_seed_and_each_printed_figure(results: Path, tmp_path: Path) -> None:
    page(tmp_path)
    for name, seeds, paper in (("condinst-table-4", 9, 3), ("adaptis-table-7", 18, 4)):
        marks = [use for use in ElementTree.parse(tmp_path / f"{name}.svg").iter() if use.tag.endswith("}use")]
        colours = [re.search(r"fill: (#\w+)", use.get("style", "")) for use in marks]
        found = [match[1] for match in colours if match]
        rows = len(MINIATURES[name.replace("-", ":", 1)].rows)
        assert found.count("#1f77b4") == seeds + rows  # and a line at the mean of each row
        assert found.count("#595959") == paper


def test_page_and_plots_are_the_same_again(results: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "gone.svg").write_text("")
    for folder in ("one", "two"):
        write_page(tmp_path / folder)
    files = [{path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in ("one", "two")]
    assert files[0] == files[1]
    assert set(files[0]) == {"README.md", "condinst-table-4.svg", "adaptis-table-7.svg"}


def test_nothing_stored_and_something_broken(results: Path, tmp_path: Path) -> None:
    assert stored("condinst:table-3") is None
    (results / "condinst-table-3.json").write_text("{")
    with pytest.raises(UserError, match="is no stored result"):
        page(tmp_path)
    for path in results.iterdir():
        path.unlink()
    assert "## What does not show" in page(tmp_path)


# ------------------------------------------------------------------------------------------- what the repository holds


def test_stored_results_are_of_todays_rows() -> None:
    """A row that changed since has to be run again; each has as many figures as seeds, and a card."""
    for name, result in all_stored().items():
        assert result["table"] == name
        rows = MINIATURES[name].rows
        assert [(row["train"], row["test"]) for row in result["rows"]] == [(list(r.train), list(r.test)) for r in rows]
        assert [row["name"] for row in result["rows"]] == [label(name, i) for i in range(len(rows))]
        assert all(len(values) == result["seeds"] for row in result["rows"] for values in row["scores"].values())
        assert result["command"].startswith(f"condinst-edu reproduce {name} --seeds {result['seeds']}")
        assert {
            "date",
            "seconds",
            "device",
            "threads",
            "torch",
            "data",
            "iterations",
            "batch",
            "start",
        } <= result.keys()


def test_a_claim_that_does_not_show_has_a_reason() -> None:
    for name, result in all_stored().items():
        for claim, verdict in verdicts(result):
            known = claim.because or MINIATURES[name].because
            assert known or verdict in ("shows", "too few seeds"), (name, claim.says, verdict)


def test_written_page_is_that_of_the_stored_results(tmp_path: Path) -> None:
    """docs/reproduced: `python -m condinst_edu.papers.reproduced docs/reproduced` writes it."""
    folder = ROOT / "docs" / "reproduced"
    assert (folder / "README.md").read_text() == page(tmp_path)
    assert {path.name for path in folder.glob("*.svg")} == {path.name for path in tmp_path.glob("*.svg")}
