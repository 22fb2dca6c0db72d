"""Traceability: from an id of a paper to code, naive form, tests and lessons; nothing of it may be lost."""

import dataclasses
import re
from pathlib import Path

import pytest
from rich.console import Console

import condinst_edu.condinst
import condinst_edu.papers.naive_fcos
from condinst_edu.cli import run
from condinst_edu.papers import ERRATA, ITEMS, TABLES, errata, notation, tables, trace
from condinst_edu.papers.forms import PAPERS, anchor, cell_text
from condinst_edu.papers.miniatures import MINIATURES
from condinst_edu.teach.lessons import lesson_names, read_lesson


def test_nothing_is_lost() -> None:
    """Every id has code, a naive form, tests and a lesson, or its entry says why not; all that is named is there."""
    assert trace.faults() == []


def test_a_renamed_symbol_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(condinst_edu.condinst, "mask_nms")  # as if it had been renamed
    monkeypatch.delattr(condinst_edu.papers.naive_fcos, "locations")
    with pytest.raises(AssertionError, match=r"condinst_edu\.papers\.naive_fcos\.locations is gone"):
        test_nothing_is_lost()
    assert [line.split(" -> ")[0] for line in trace.faults()] == [
        "condinst:locations",
        "condinst:table-5",
        "condinst-eccv:table-5",
    ]


def test_a_lost_test_or_citation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of tests and lessons, where one of each goes by another name."""
    changes = {
        "tests/test_layers.py": ("def test_dice_loss_by_loop", "def test_dice_loss_in_loops"),
        "lessons/src/04_condinst.py": ("`condinst:top-64`", "`condinst:top-65`"),
        "lessons/src/05_attention_maps.py": ("## ", "## `condinst-eccv:table-1a` "),
    }
    for path in (*trace.ROOT.glob("tests/test_*.py"), *trace.ROOT.glob("lessons/src/*.py")):
        name = path.relative_to(trace.ROOT).as_posix()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(path.read_text().replace(*changes.get(name, ("", ""))))
    monkeypatch.setattr(trace, "ROOT", tmp_path)
    assert trace.faults() == [
        "condinst:eq-2 -> tests/test_layers.py::test_dice_loss_by_loop is gone",
        "condinst:top-64 has no lesson, and no reason is stated",
        "condinst-eccv:table-1a states why it has no lesson, and has one",
    ]


def test_naive_forms_are_what_the_tests_compare_with() -> None:
    """Each naive form of an id is called in a file of its tests; a status of "equal" needs one."""
    for entry in ITEMS.values():
        assert (entry.status == "equal") <= bool(entry.naive), entry.id
        texts = [(trace.ROOT / test.split("::")[0]).read_text() for test in entry.tests]
        for symbol in entry.naive:
            module, name = symbol.split(".")[-2:]
            called = re.compile(rf"\b(?:naive|{module})\.{name}\(")
            assert any(module in text and called.search(text) for text in texts), (entry.id, symbol)


def test_statuses() -> None:
    for entry in ITEMS.values():
        assert entry.is_table or entry.status in ("equal", "tested", "we differ"), entry.id
        assert not entry.is_table or entry.status in ("miniature", "recipe", "figures"), entry.id
        assert entry.status != "miniature" or entry.id in MINIATURES, entry.id


@pytest.mark.parametrize("name", lesson_names())
def test_lessons_cite_what_their_headers_promise(name: str) -> None:
    for id in read_lesson(name).papers:
        assert f"lessons/{name}.ipynb" in {notebook for notebook, _ in trace.sections_on(id)}, id


def test_lessons_are_found_by_what_they_cite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lessons" / "src").mkdir(parents=True)
    text = "#     papers: `condinst:eq-2`\n# ## The loss\n# `condinst:eq-2`, and `condinst:eq-2`\n"
    text += '# ### Why\nprint(item("condinst:eq-2"))\n# ## Else\n# `condinst:eq-22`, condinst:eq-2-a, condinst:eq-2.b\n'
    text += "# ## End\n# Source: condinst:eq-2.\n# ## Last\n# condinst:eq-2: what it says\n"
    (tmp_path / "lessons" / "src" / "02_heads.py").write_text(text)
    monkeypatch.setattr(trace, "ROOT", tmp_path)
    assert trace.sections_on("condinst:eq-2") == [
        ("lessons/02_heads.ipynb", "The loss"),
        ("lessons/02_heads.ipynb", "Why"),
        ("lessons/02_heads.ipynb", "End"),
        ("lessons/02_heads.ipynb", "Last"),
    ]
    assert not trace.sections_on("condinst:eq")


def test_coverage_counts_stated_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three ids, one has all parts, one lacks a part for a stated reason, one for none."""
    entries = [ITEMS["condinst:eq-2"], ITEMS["condinst:top-64"], ITEMS["condinst:eq-1"]]
    lost = {"condinst:eq-2": [], "condinst:top-64": ["naive", "lesson"], "condinst:eq-1": ["lesson"]}
    entries[1] = dataclasses.replace(entries[1], lacks={"naive": "as it is", "lesson": "so"})
    monkeypatch.setattr(trace, "missing", lambda entry: lost[entry.id])
    expected = "2 of 3 ids whole or with a stated reason (code 3, naive 2, tests 3, lesson 1)"
    assert trace.coverage(entries) == expected


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in ITEMS)
    assert re.search(rf"Coverage: \d+ of {len(ITEMS)} ids whole", printed)
    assert run(["trace", "condinst", "eq-2"]) == 0
    printed = capsys.readouterr().out
    assert r"\frac{1}{N_{pos}}" in printed
    assert re.search(r"code: condinst_edu\.condinst\.CondInst\.mask_loss  condinst_edu/condinst\.py:\d+", printed)
    assert "lesson: lessons/02_dynamic_mask_heads.ipynb, " in printed
    for name in ("condinst:table-1a", "condinst:controller", "dr1mask:table-9"):
        assert run(["trace", name]) == 0
    printed = capsys.readouterr().out
    assert "Erratum (confirmed)" in printed
    assert "(ms per 100 instances)" in printed


def test_papers_and_errata_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    """A paper's short name lists its ids and errata alone; an erratum's id says what it is and where its witness is."""
    assert run(["trace", "DR1Mask"]) == 0
    printed = capsys.readouterr().out
    assert all((f" {name} " in printed) == (entry.paper == "dr1mask") for name, entry in ITEMS.items())
    assert all((name in printed.split("Errata: ")[1]) == name.startswith("dr1mask:") for name in ERRATA)
    assert not ERRATA.keys() & ITEMS.keys()
    for name, erratum in ERRATA.items():
        assert run(["trace", name]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"Erratum ({erratum.status}) {name}, {erratum.where}" in printed
        assert erratum.finding in printed
        assert f"papers.witnesses.{erratum.witness.__name__} condinst_edu/papers/witnesses.py:" in printed
    assert run(["trace", "nonsense"]) == 2
    assert "no 'nonsense' in the papers" in capsys.readouterr().err


@pytest.mark.parametrize("name", TABLES)
def test_no_figure_is_cut_on_a_narrow_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    trace.show_table(TABLES[name], Console(width=60))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in TABLES[name].rows:
        cells = [word for cell in row for word in cell_text(cell).split()]
        assert cells in lines, row


# -------------------------------------------------------------------------------------------------------------- pages


def headings(page: str) -> set[str]:
    """The anchors of a page."""
    return {anchor(line.lstrip("# ")) for line in page.splitlines() if line.startswith("##")}


def test_pages_link_to_what_is_there() -> None:
    pages = {"errata.md": errata.page(), "tables.md": tables.page(), "notation.md": notation.page()}
    for name, page in pages.items():
        for path, target in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", page):
            assert target in headings(pages[path or name]), (name, path, target)
    for page in pages.values():
        assert set(re.findall(rf"`((?:{'|'.join(PAPERS)}):[\w.-]+)`", page)) <= {*ITEMS, *ERRATA, *TABLES}
    assert {anchor(name) for name in ERRATA} <= headings(pages["errata.md"])
    assert {anchor(name) for name in TABLES} == headings(pages["tables.md"])
