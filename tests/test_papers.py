"""What the papers package holds: no cited id is missing, no mapped code is lost, figures are as printed."""

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from condinst_edu.errors import UserError
from condinst_edu.papers import ERRATA, ITEMS, TABLES, item, notation, table
from condinst_edu.papers.forms import Cell, Table
from condinst_edu.papers.items import resolve

PAPERS = Path(os.environ.get("CONDINST_PAPERS", ROOT.parent / "shared" / "papers"))
FILES = {"condinst": "000", "condinst-eccv": "001", "dr1mask": "002", "adaptis": "003", "slides": "004"}
PACKAGE = ROOT / "condinst_edu"
LESSONS = ROOT / "lessons" / "src"
CITED = re.compile(r"\b(?:condinst|condinst-eccv|dr1mask|adaptis|slides):[a-z][a-z0-9.-]*[a-z0-9]")


# ---------------------------------------------------------------------------------------------------------------- ids


def citations() -> dict[str, str]:
    """Every id that package, lessons and documents cite, and a file that does."""
    files = [*PACKAGE.rglob("*.py"), *LESSONS.glob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    return {name: path.name for path in files for name in CITED.findall(path.read_text())}


def unknown(cited: dict[str, str]) -> dict[str, str]:
    """The cited ids that neither an item nor an erratum has, and their files."""
    return {name: file for name, file in cited.items() if name not in ITEMS and name not in ERRATA}


def test_every_cited_id_exists() -> None:
    cited = citations()
    assert len(cited) > 60  # the pattern finds what docstrings and lessons cite
    assert unknown(cited) == {}
    assert unknown({"condinst:eq-3": "02_dynamic_mask_heads.py"})


def test_every_id_names_its_paper_and_every_table_has_an_id() -> None:
    for key, entry in ITEMS.items():
        assert entry.id == key
        assert CITED.fullmatch(key), key
        assert entry.title
        assert entry.section
    assert set(TABLES) <= set(ITEMS)
    without = {key for key in ITEMS if ":table-" in key and key not in TABLES}
    assert without == {"condinst-eccv:table-1"}  # it is 1a and 1b


def test_docstrings_and_map_agree() -> None:
    """Code whose docstring names an id as its source, and that the id's entry maps: at least one per mapped id."""
    for entry in ITEMS.values():
        if entry.is_table or entry.paper == "condinst-eccv":
            continue
        for symbols in filter(None, (entry.symbols, entry.naive)):
            assert any(entry.id in (resolve(symbol).__doc__ or "") for symbol in symbols), (entry.id, symbols)


def test_lookup() -> None:
    assert item("condinst:eq-2") is item("condinst eq-2") is item(" CondInst  EQ-2 ")
    assert "frac" in item("condinst:eq-2").formula
    with pytest.raises(UserError, match=r"no 'condinst:eq-3' in the papers: did you mean condinst:eq-[12] or"):
        item("condinst:eq-3")
    with pytest.raises(UserError, match=r"an id looks like condinst:eq-1 "):
        item("zzz")
    assert table("condinst table-3").value("AP", relative=True, features=True) == 35.6
    with pytest.raises(UserError, match="condinst:eq-2 is no table with figures"):
        table("condinst:eq-2")
    with pytest.raises(ValueError, match="no number but None"):
        table("condinst:table-7").value("AP", backbone="R-50", method="CondInst-RT shtw.")


@pytest.mark.skipif(not (PAPERS / "README.md").exists(), reason=f"the papers' texts are not in {PAPERS}")
def test_every_id_of_the_list_is_there() -> None:
    text = (PAPERS / "README.md").read_text().split("## What must be traceable")[1].split("## Errata leads")[0]
    asked = set()
    for paragraph in re.split(r"\n\s*\n", text):
        head = re.match(r"\*\*([a-z0-9-]+)\*\* - ", paragraph)
        if head is None or head[1] == "condinst-eccv":  # prose there
            continue
        words = re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)", "", paragraph[head.end() :])
        for part in words.replace(":", ",").split(","):
            name = (re.findall(r"[a-z][a-z0-9.-]*", part) or [""])[0].rstrip(".")
            if name == "table-2..6":
                asked |= {f"{head[1]}:table-{n}" for n in range(2, 7)}
            elif "-" in name or name in ("locations", "controller", "upsampling", "inference", "adain", "nfl", "focal"):
                asked.add(f"{head[1]}:{name}")
    assert len(asked) > 65
    assert asked - set(ITEMS) - {"adaptis:object-level"} == set()


# ------------------------------------------------------------------------------------------------------------- tables


def numbers(text: str) -> list[float]:
    """All numbers of a line, fractions left out."""
    return [float(n) for n in re.findall(r"(?<![\w./-])\d+(?:\.\d+)?(?![\w/])", text.replace("%", " "))]


def figures(row: tuple[Cell, ...]) -> list[float]:
    return [float(cell) for cell in row if isinstance(cell, int | float) and not isinstance(cell, bool)]


def is_printed(row: tuple[Cell, ...], line: str) -> bool:
    """Whether the line ends in the row's figures, all of them, in order; references in brackets do not count."""
    found = numbers(re.sub(r"\[\d+\]", "", line))
    ours = figures(row)
    return bool(ours) and found[len(found) - len(ours) :] == ours


def lines_after(lines: list[str], entry: Table) -> Iterator[int]:
    """For each row with figures, the line where it is printed; each within a few lines of the one before."""
    step = 9 if entry.id.startswith("slides") else 5
    rows = [row for row in entry.rows if figures(row)]
    starts = [i for i, line in enumerate(lines) if is_printed(rows[0], line)]
    for start in starts:
        place, places = start, [start]
        for row in rows[1:]:
            near = [i for i in range(place + 1, min(place + step, len(lines))) if is_printed(row, lines[i])]
            if not near:
                break
            place = near[0]
            places.append(place)
        if len(places) == len(rows):
            yield from places
            return


def lines_of(paper: str) -> list[str]:
    (path,) = PAPERS.glob(f"{FILES[paper]}_*.txt")
    return path.read_text().splitlines()


with_papers = pytest.mark.skipif(not PAPERS.exists(), reason=f"the papers' texts are not in {PAPERS}")


@with_papers
@pytest.mark.parametrize("name", TABLES)
def test_figures_are_as_printed(name: str) -> None:
    entry = TABLES[name]
    lines = lines_of(name.split(":")[0])
    places = list(lines_after(lines, entry))
    assert len(places) == sum(bool(figures(row)) for row in entry.rows), f"{name} is not printed so"
    for row, place in zip([row for row in entry.rows if figures(row)], places, strict=True):
        if "\t" in lines[place]:
            ticks = [cell.strip() == "✓" for cell in lines[place].split("\t")]
            assert len(ticks) == len(entry.columns)
            for cell, ticked in zip(row, ticks, strict=True):
                assert not isinstance(cell, bool) or name == "adaptis:table-7" or cell == ticked


# What the texts have for our words: letters that were read wrongly, and in AdaptIS references in place of names.
READ_AS = {"yoloact": "yolact", "drimask": "dr1mask", "upnet": "upsnet", "aixal": "axial", "×": "x", "∗": "*"}
NAMED = {"[6]": "JSIS-Net", "[28]": "DeeperLab", "[17]": "TASCNet", "ours": "AdaptIS"}


def plain(text: str) -> str:
    """Letters, digits, stars and plus signs of a text."""
    for wrong, right in READ_AS.items():
        text = text.lower().replace(wrong, right)
    return re.sub(r"[^a-z0-9+*]", "", text)


@with_papers
@pytest.mark.parametrize("name", [name for name in TABLES if name != "slides:table-solo-gains"])
def test_words_are_as_printed(name: str) -> None:
    """Methods, backbones and schedules; where one cell serves several rows it is in the first of them alone."""
    entry, above = TABLES[name], ""
    lines = lines_of(name.split(":")[0])
    rows = [row for row in entry.rows if figures(row)]
    for row, place in zip(rows, lines_after(lines, entry), strict=True):
        line = lines[place].lower()
        for reference, method in NAMED.items() if entry.id in ("adaptis:table-3", "adaptis:table-4") else ():
            line = line.replace(reference, method)
        for cell in (cell for cell in row if isinstance(cell, str)):
            assert plain(cell) in plain(line + above), (cell, lines[place])
        above = line if "\t\t" not in line else above


@with_papers
@pytest.mark.parametrize("name", TABLES)
def test_no_row_is_left_out(name: str) -> None:
    """No other line with figures stands between a table's rows, nor right before or after them."""
    lines = lines_of(name.split(":")[0])
    places = list(lines_after(lines, TABLES[name]))
    others = set(range(places[0] - 3, places[-1] + 4)) - set(places)
    assert [lines[i] for i in others if len(lines[i]) < 150 and len(numbers(lines[i])) > 2] == []


@with_papers
@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("condinst-eccv")])
def test_slides_show_the_conference_tables(name: str) -> None:
    assert list(lines_after(lines_of("slides"), TABLES[name]))


@with_papers
def test_every_table_of_the_papers_is_there() -> None:
    """By the numbers of their captions: 1 of the journal and of the conference version has two parts."""
    for paper in ("condinst", "condinst-eccv", "dr1mask", "adaptis"):
        captions = (re.match(r"\s*table (\d+)\s*[.:–-]", line, re.I) for line in lines_of(paper))
        printed = {match[1] for match in captions if match}
        ours = {re.sub(r"[ab]$", "", name.split("-")[-1]) for name in TABLES if name.startswith(f"{paper}:")}
        assert ours == printed, paper


def test_tables_are_whole() -> None:
    for entry in TABLES.values():
        assert all(len(row) == len(entry.columns) for row in entry.rows), entry.id
        assert len(set(entry.names)) == len(entry.names), entry.id
        assert entry.caption
        for row in entry.rows:
            for column, cell in zip(entry.columns, row, strict=True):
                assert column.unit != "%" or cell is None or 0 < float(cell) < 100, (entry.id, column)


# ----------------------------------------------------------------------------------------------------------- notation


def test_symbols_are_called_so_in_the_code() -> None:
    for symbol in notation.SYMBOLS:
        name, _, argument = symbol.code.removesuffix(")").partition("(")
        found = resolve(f"condinst_edu.{name}")
        assert not argument or argument in inspect.signature(found).parameters, symbol
        assert symbol.paper in {entry.paper for entry in ITEMS.values()}
        assert {ITEMS[id].paper for id in symbol.items} <= {symbol.paper}, symbol
        assert symbol.meaning
        assert symbol.latex.count("{") == symbol.latex.count("}")


def letters(latex: str) -> set[str]:
    """The letters of a formula, without commands, function names, and words as an index: mask of L_{mask}."""
    latex = re.sub(r"\\math(?:rm|bb)\{\w+\}|\\(?!gamma|lambda|theta|Sigma)[a-zA-Z]+", " ", latex)
    latex = re.sub(r"([_^])\{[a-z]{2,}\}", " ", latex)
    return set(re.findall(r"\\[a-zA-Z]+|[a-zA-Z]", latex))


def test_formulas_have_symbols() -> None:
    """Each letter of a formula is explained, but for those that only count: instance i, location n, pixel (i, j)."""
    assert letters(r"\frac{1}{N_{pos}} \sum_{x,y} L_{mask}(\tilde{F}; \theta) \mathbb{R}^m") == {*"NxyLFm", r"\theta"}
    for name, entry in ITEMS.items():
        named = {letter for symbol in notation.symbols_of(name) for letter in letters(symbol.latex)}
        assert letters(entry.formula) - named <= set("ijn"), name


def test_disagreements() -> None:
    letters = notation.disagreements()
    assert {s.paper for s in letters["R"]} == {"dr1mask", "adaptis"}
    assert {s.paper for s in letters["K"]} == {"condinst", "dr1mask", "adaptis"}
    assert "theta" not in letters
    for names in notation.SAME_THING.values():
        assert len(set(names.values())) > 1


# ------------------------------------------------------------------------------------------------------------- errata


@pytest.mark.parametrize("name", ERRATA)
def test_erratum_has_a_witness(name: str) -> None:
    erratum = ERRATA[name]
    assert erratum.witness() is True
    assert set(erratum.items) <= set(ITEMS)
    assert erratum.status in ("confirmed", "refuted", "we differ", "open")


LEADS = [
    "condinst:section-3.4",
    "condinst:table-1a-1b",
    "condinst:table-3-caption",
    "condinst:section-3.6",
    "condinst:table-9-rows",
    "condinst:eq-2-classes",
    "condinst:section-2.5",
    "dr1mask:eq-3-4",
    "dr1mask:equation-3.1",
    "dr1mask:kernel-shape",
    "dr1mask:crops",
    "dr1mask:section-3.2.3",
    "dr1mask:abstract",
    "dr1mask:table-6-gain",
    "adaptis:appendix-a",
    "adaptis:section-7",
]


def test_every_lead_is_followed() -> None:
    """One entry for each place where a paper seems to contradict itself, in the order of the list of them."""
    assert set(LEADS) <= set(ERRATA)
    if not (PAPERS / "README.md").exists():
        pytest.skip(f"the papers' texts are not in {PAPERS}")
    leads = (PAPERS / "README.md").read_text().split("## Errata leads")[1].split("|---|---|---|")[1]
    asked = [line.split("|")[1].strip() for line in leads.splitlines() if line.startswith("|")]
    assert asked == [name.split(":")[0] for name in LEADS]


# A few words of the paper for what an erratum says of its text, as the extracted texts have them.
SAID = {
    "condinst:section-3.4": ("factor = 4, the performance can be significantly improved by 1%",),
    "condinst:table-3-caption": ("drops significantly from 35.7% to 31.4% in mask AP",),
    "condinst:section-3.3": ("Table 3 (2nd row)", "Table 3 (2rd row)"),
    "condinst:section-3.6": ("35.4% vs. 34.6%", "boosted from 37.8% to 38.8%", "39.1% to 40.1%"),
    "condinst:section-3.9": ("[24] and Panoptic-FPN [25], CondInst also outperforms them considerably",),
    "condinst:eq-2-classes": (r"\in \{0,1\}^{H \times W \times C}",),
    "condinst:section-2.5": ("we use the structure from Panoptic-FPN", "four feature maps are concatenated together"),
    "condinst:section-2.2": ("has the same architecture as the classification head",),
    "condinst:section-2.1": ("P_4 and P_5 are upsampled to the resolution of P_3 with bilinear and added to P_3",),
    "dr1mask:eq-3-4": (r"\circ \mathbf{B}[h-j, w-k])", r"\text{Conv}(\mathbf{X} \circ \mathbf{A}) \circ \mathbf{B}"),
    "dr1mask:equation-3.1": ("in Equation 3.1. They are", "shown in Equation 3.1", "Figure 3.1", "in Equation (2) to"),
    "dr1mask:kernel-shape": (r"\mathbf{W}'_{hw} \in \mathbb{R}^C $",),
    "dr1mask:crops": (r"D \times 56 \times 65", r"$\mathbf{R}^{(i)}$ and the full-attention $\mathbf{Q}^{(i)}$"),
    "dr1mask:upsampling": ("spatially aligned with the downsampling mechanism of strided convolution",),
    "dr1mask:table-5-stuff": ("significantly better in semantic segmentation quality",),
    "dr1mask:output-stride": ("the output stride, *i.e.*, 4", "from the highest level features"),
    "dr1mask:abstract": ("10% faster", "6% faster"),
    "dr1mask:section-4.3": ("achieves the best performance and is also the most efficient among them all",),
    "dr1mask:table-6-gain": ("improve the semantic segmentation quality by 2.1",),
    "dr1mask:table-1-gain": ("each has slight improves on",),
    "dr1mask:section-3.2.3": ("parameters from 784 to 16",),
    "adaptis:section-7": ("Mapillary and COCO datasets are shown in Table 6 and Table 4",),
    "adaptis:section-5": ("has the highest average confidence",),
    "adaptis:section-5-classes": ("among all labels for a mask",),
    "adaptis:section-7-backbones": ("We train only ResNeXt-101 model for this dataset on 8 GPUs with batch size 16",),
    "adaptis:radius": ("For all experiments we set the radius of Relative CoordConv to 280 pixels",),
    "adaptis:toy-colours": ("blue with red boundary",),
    "adaptis:appendix-a": ("total gradient of the NFL is equal to the total gradient of BCE",),
    "slides:blendmask-cost": ("less than 10K (BlendMask)",),
}
OF_FIGURES = {"condinst:table-1a-1b", "condinst:table-9-rows"}  # tables alone, which are compared as a whole


def printed(text: str) -> str:
    """A text without line ends and the spaces that reading a formula leaves."""
    return re.sub(r"\s+", "", text)


@with_papers
def test_what_errata_quote_is_printed() -> None:
    assert SAID.keys() | OF_FIGURES == ERRATA.keys()
    for name, quotes in SAID.items():
        text = printed("\n".join(lines_of(name.split(":")[0])))
        for quote in quotes:
            assert printed(quote) in text, (name, quote)


def test_a_witness_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Table 5's default row changed, the witness of Tables 1a and 1b no longer holds."""
    other = TABLES["condinst-eccv:table-5"]
    monkeypatch.setitem(TABLES, "condinst:table-5", other)
    assert not ERRATA["condinst:table-1a-1b"].witness()
