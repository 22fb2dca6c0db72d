"""Traceability: from an id of a paper to code, naive form, tests and lessons; nothing of it may be lost."""

import re
from pathlib import Path

import pytest

from condinst_edu.cli import run
from condinst_edu.papers import ERRATA, ITEMS, TABLES, errata, tables, trace
from condinst_edu.papers.forms import anchor


def test_lessons_are_found_by_what_they_cite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lessons" / "src").mkdir(parents=True)
    text = "#     papers: `condinst:eq-2`\n# ## The loss\n# `condinst:eq-2`, and `condinst:eq-2`\n"
    text += '# ### Why\nprint(item("condinst:eq-2"))\n# ## Else\n# `condinst:eq-22`, condinst:eq-2-a, condinst:eq-2.b\n'
    (tmp_path / "lessons" / "src" / "02_heads.py").write_text(text + "# ## End\n# Source: condinst:eq-2.\n")
    monkeypatch.setattr(trace, "ROOT", tmp_path)
    assert trace.sections_on("condinst:eq-2") == [
        ("lessons/02_heads.ipynb", "The loss"),
        ("lessons/02_heads.ipynb", "Why"),
        ("lessons/02_heads.ipynb", "End"),
    ]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in ITEMS)
    assert re.search(rf"Coverage: \d+ of {len(ITEMS)} whole", printed)
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


# -------------------------------------------------------------------------------------------------------------- pages


def headings(page: str) -> set[str]:
    """The anchors of a page."""
    return {anchor(line.lstrip("# ")) for line in page.splitlines() if line.startswith("##")}


def test_pages_link_to_what_is_there() -> None:
    pages = {"traceability.md": trace.page(), "errata.md": errata.page(), "tables.md": tables.page()}
    for name, page in pages.items():
        for path, target in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", page):
            if not target.startswith("L"):
                assert target in headings(pages[path or name]), (name, path, target)
        for path, line in re.findall(r"\]\(\.\./([\w./]+)#L(\d+)\)", page):
            assert 0 < int(line) <= len((trace.ROOT / path).read_text().splitlines())
    assert {anchor(name) for name in ITEMS} <= headings(pages["traceability.md"])
    assert {anchor(name) for name in ERRATA} <= headings(pages["errata.md"])
    assert {anchor(name) for name in TABLES} == headings(pages["tables.md"])


def test_a_page_takes_other_links() -> None:
    page = trace.page(lambda path, line: f"https://example.org/{path}?{line}")
    assert "(https://example.org/condinst_edu/mask_head.py?" in page
    assert "../" not in page
