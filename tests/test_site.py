"""`make site`: built as a user builds it; links resolve offline; search, formulas and themes in a browser."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from jupyter_browser import ROOT

from condinst_edu.papers import ERRATA, ITEMS, TABLES
from condinst_edu.papers.forms import anchor
from condinst_edu.papers.notation import symbols_of
from condinst_edu.papers.trace import by_paper, coverage, missing, sections_on
from condinst_edu.teach.notebooks import LESSONS, lesson_names, read_lesson, read_quiz

sys.path.insert(0, str(ROOT / "tools" / "site"))
import pages
import slides

needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_nb")),
    reason="Sphinx is missing: pip install -e '.[site]'",
)


# ------------------------------------------------------------------------------------------------- what pages.py makes


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages.paper_pages()


def test_every_id_has_a_section_with_its_code(made: dict[str, str]) -> None:
    for entry in ITEMS.values():
        page = made[entry.id.split(":")[0]]
        section = page.split(f"## `{entry.id}`\n")[1].split("\n## ")[0]
        assert f"({pages.label(entry.id)})=" in page
        for name in (*entry.symbols, *entry.naive, *entry.tests):
            assert name.removeprefix("condinst_edu.") in section
            assert pages.source_of(name) in section
        assert not entry.formula or entry.formula in section
        assert all(f"- ${symbol.latex}$: " in section for symbol in symbols_of(entry.id))


def test_a_section_says_what_else_is_known_of_its_id(made: dict[str, str]) -> None:
    """Status, reasons for what is missing, lessons, its own errata and no others, its table, its symbols."""
    sections: dict[str, str] = {}
    for page in made.values():
        sections |= {part.partition("`")[0]: part for part in page.split("\n## `")[1:]}
    assert sections.keys() == ITEMS.keys()
    for paper, entries in by_paper().items():
        assert f"\n\n{coverage(entries)}.\n" in made[paper].split("\n## ")[0]
    for name, text in sections.items():
        entry, lines = ITEMS[name], text.splitlines()
        assert any(line.startswith(f"*{entry.status}*: ") for line in lines)
        assert [line.split(":")[0] for line in lines if line.startswith("No ")] == [
            f"No {part}" for part in missing(entry)
        ]
        assert all(pages.plain(reason) in text for reason in entry.lacks.values())
        places = [f"{heading}](../{file})" for file, heading in sections_on(name)]
        assert all(place in text for place in places)
        assert any(line.startswith("Lessons: ") for line in lines) == bool(places)
        errata = [anchor(erratum.id) for erratum in ERRATA.values() if name in erratum.items]
        assert re.findall(r"\*\*\[Erratum\]\(errata\.md#([\w-]+)\)", text) == errata
        if entry.formula:
            assert f"\n$$\n{entry.formula}\n$$\n" in text
        if name in TABLES:
            assert any(line.startswith("|") and f" {TABLES[name].columns[0].name} " in line for line in lines)
        for symbol in symbols_of(name):
            (line,) = (line for line in lines if line.startswith(f"- ${symbol.latex}$: "))
            assert pages.plain(symbol.meaning) in line
            assert pages.plain(symbol.shape or "") in line
    assert "<details open" not in "".join(sections.values())


def test_pages_that_modules_make_and_groups_of_the_reference() -> None:
    assert pages.pages_of_modules().keys() == {"errata", "tables", "notation"}
    index = pages.api_index(pages.api_pages())
    layers = index.split("## `condinst_edu.layers`\n")[1].split("\n## ")[0]
    assert "- [condinst_edu.layers.fpn](" in layers
    assert "- [condinst_edu.fcos](" not in layers
    assert index.count("- [condinst_edu.fcos](api/condinst_edu.fcos.rst): ") == 1
    sentence = re.search(r"- \[condinst_edu.layers.losses\]\([^)]*\): (.+)", index)
    assert sentence is not None
    first = "Losses that several ideas share; the focal loss is torchvision's `sigmoid_focal_loss`."
    assert sentence[1] == first
    overview = pages.trace_page()
    assert all(f"| `{entry.id}` | {pages.plain(entry.title)} |" in overview for entry in ITEMS.values())


def test_sources_of_functions_properties_and_tests() -> None:
    assert pages.source_of("condinst_edu.mask_head.split_parameters").startswith("def split_parameters(")
    assert "def num_parameters" in pages.source_of("condinst_edu.mask_head.DynamicMaskHead.num_parameters")
    found = pages.source_of("tests/test_site.py::test_sources_of_functions_properties_and_tests")
    assert found.startswith("def test_sources_of")
    constant = pages.source_of("condinst_edu.papers.claims.RARE")
    assert constant == "condinst_edu.papers.claims.RARE = 0.05"


def test_a_table_keeps_what_markdown_would_take() -> None:
    assert pages.plain("a_b * c|d `x_y`") == r"a\_b \* c\|d `x_y`"
    assert list(pages.markdown_table(["a", "b"], [["1", "|"]])) == ["| a | b |", "|---|---|", r"| 1 | \| |", ""]


def test_every_module_is_in_the_reference() -> None:
    made = pages.api_pages()
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "condinst_edu").rglob("*.py")
    }
    assert set(made) == modules
    index = pages.api_index(made)
    for name in made:
        assert f"api/{name}.rst" in index


def test_slides_follow_from_a_lesson() -> None:
    lesson = read_lesson("02_dynamic_mask_heads")
    notebook = json.loads((LESSONS / "02_dynamic_mask_heads.ipynb").read_text())
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    shown = slides.slides_of(lesson, notebook, read_quiz(lesson.name))
    assert shown[0].title == "2. Dynamic mask heads"
    assert shown[1].picture
    assert any("L_{dice}" in formula for slide in shown for formula in slide.formulas)
    assert [slide.title for slide in shown].count("A question") == len(read_quiz(lesson.name))
    assert len(shown[-1].points) == 3
    assert not any("✓" in slide.printed for slide in shown)
    page = slides.deck(lesson, shown)
    assert page.count("<section>") == len(shown)
    assert not re.search(r"(src|href)=.https?:", page)


# --------------------------------------------------------------------------------------------------------------- built


@pytest.fixture(scope="module")
def site() -> Path:
    """The site as `make site` leaves it."""
    command = [sys.executable, str(ROOT / "tools" / "site" / "build.py"), "--strict"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = ROOT / "build" / "site"
    assert done.stdout.splitlines()[-1].endswith("in a browser.")
    return folder


class Links(HTMLParser):
    """Addresses that a page leads to, addresses that it loads, and its own anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "search", "next", "prev") and "href" in given:
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.mark.slow
@needs_sphinx
def test_links_and_pictures_resolve_offline(site: Path) -> None:
    found = {}
    for path in site.rglob("*.html"):
        found[path.resolve()] = links = Links()
        links.feed(path.read_text())
    assert len(found) > 50
    broken = []
    for path, links in found.items():
        for address in links.leads + links.loads:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto"):
                if address in links.loads:
                    broken.append(f"{path.name} loads {address}")
                continue
            if parts.scheme == "data":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(site)} -> {address}")
            elif parts.fragment and target in found and unquote(parts.fragment) not in found[target].anchors:
                broken.append(f"{path.relative_to(site)} -> {address}: no such place")
    assert broken == []


@pytest.mark.slow
@needs_sphinx
def test_lessons_have_their_pictures_and_ids_lead_to_their_place(site: Path) -> None:
    for name in lesson_names():
        text = (site / "lessons" / f"{name}.html").read_text()
        assert "<img" in text, name
    lesson = (site / "lessons" / "02_dynamic_mask_heads.html").read_text()
    assert re.search(r'href="\.\./papers/condinst\.html#condinst-eq-2"', lesson)
    assert 'id="l02-c03"' in lesson  # a cell that the plan for class links to


@pytest.mark.slow
@needs_sphinx
def test_search_finds_dice(site: Path, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"file://{site}/index.html")
    page.locator("input[name=q]").first.fill("dice")
    page.keyboard.press("Enter")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    page.wait_for_timeout(1000)
    hits = page.locator("#search-results li a").all_inner_texts()
    assert any("dice_loss" in hit for hit in hits)
    assert any("Dynamic mask heads" in hit for hit in hits)
    page.close()


@pytest.mark.slow
@needs_sphinx
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(site: Path, browser: Any, width: int, scheme: str) -> None:
    """No error, nothing from elsewhere, nothing wider than the screen, formulas set, the system's theme taken."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
    names = ["index", "lessons/02_dynamic_mask_heads", "papers/condinst", "papers/trace", "docs/results", "api"]
    for name in names:
        page.goto(f"file://{site}/{name}.html")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shade = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
        assert (shade < 80) == (scheme == "dark")
    page.goto(f"file://{site}/papers/condinst.html")
    page.locator("mjx-container svg").first.wait_for(timeout=20_000)
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert wrong == []
    page.close()


@pytest.mark.slow
@needs_sphinx
def test_slides_in_a_browser(site: Path, browser: Any) -> None:
    """Arrow keys turn the page, answers come with a key, formulas are set, nothing comes from elsewhere."""
    for name in lesson_names():
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        wrong: list[str] = []
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.on(
            "request",
            lambda r, wrong=wrong: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url),
        )
        page.goto(f"file://{site}/slides/{name}.html")
        shown = page.locator("section.now")
        count = page.locator("section").count()
        assert count > 8
        assert page.locator("section img").count() >= 2
        if name != "00_data_and_scores":
            page.locator("mjx-container svg").first.wait_for(state="attached", timeout=20_000)
        answers = 0
        for k in range(1, count):
            title = shown.locator("h1").inner_text()
            hidden = shown.locator(".answer[hidden]").count()
            page.keyboard.press("ArrowRight")
            if hidden:
                assert shown.locator("h1").inner_text() == title == "A question"
                assert shown.locator(".answer").is_visible()
                answers += 1
                page.keyboard.press("ArrowRight")
            assert page.locator("#place").inner_text() == f"{k + 1} / {count}"
        assert answers >= 3
        page.keyboard.press("ArrowLeft")
        assert page.locator("#place").inner_text() == f"{count - 1} / {count}"
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("d")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
        assert wrong == []
        page.close()


@pytest.mark.slow
def test_without_sphinx_it_says_so(tmp_path: Path) -> None:
    """One sentence, and no page, where the packages of the extra are missing."""
    folder = tmp_path / "site"
    shutil.copytree(ROOT / "tools" / "site", folder)
    (folder / "furo.py").write_text("raise ImportError('none', name='furo')")
    done = subprocess.run([sys.executable, str(folder / "build.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "site: furo is missing; `make site` installs it.\n"
