"""The pages of the site that no file holds: one for each paper, and one for each module of the library.

A paper's page has, for each of its ids, the formula, the code, the naive form, the test and the lesson, all in one
place: whoever looks for `condinst:eq-2` needs no second page.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import condinst_edu
from condinst_edu.papers import ERRATA, TABLES, Item
from condinst_edu.papers.forms import STATUS, anchor
from condinst_edu.papers.items import resolve
from condinst_edu.papers.notation import symbols_of
from condinst_edu.papers.tables import markdown
from condinst_edu.papers.trace import PAPERS, by_paper, coverage, missing, section, sections_on, source

ROOT = Path(condinst_edu.__file__).parents[1]


def label(name: str) -> str:
    """The label of an id on its paper's page; conf.py links to it."""
    return name.replace(":", "-")


def folded(summary: str, text: str) -> list[str]:
    """Markdown that is shown after a click."""
    return [f"<details><summary>{summary}</summary>", "", text, "", "</details>", ""]


def code_block(source: str) -> str:
    return f"```python\n{source.rstrip()}\n```"


# ---------------------------------------------------------------------------------------------------------- papers


def paper_pages() -> dict[str, str]:
    """{name of a paper: its page}."""
    return {paper: "\n".join(paper_page(paper, entries)) for paper, entries in by_paper().items()}


def paper_page(paper: str, entries: list[Item]) -> Iterator[str]:
    yield from (f"# {PAPERS[paper]}", "", f"{coverage(entries)}.", "")
    for entry in entries:
        yield from item_section(entry)


def item_section(entry: Item) -> Iterator[str]:
    """One id: what it says, and where it is in code, tests and lessons."""
    yield from (f"({label(entry.id)})=", f"## `{entry.id}`", "", f"{entry.title} ({section(entry)}).", "")
    if entry.formula:
        yield from ("$$", entry.formula, "$$", "")
    for s in symbols_of(entry.id):
        words = "; ".join(filter(None, (s.meaning, s.shape)))
        yield f"- ${s.latex}$: {plain(words)}; in the code `{s.code}`"
    yield ""
    if entry.id in TABLES:
        yield from (*markdown(TABLES[entry.id]), "")
    yield from (f"*{entry.status}*: {STATUS[entry.status]}.", "")
    if entry.symbols:
        yield from ("Code: " + ", ".join(f"`{symbol}`" for symbol in entry.symbols), "")
    for symbol in entry.symbols:
        yield from folded(f"<code>{symbol.removeprefix('condinst_edu.')}</code>", code_block(source_of(symbol)))
    for kind, names in (("Naive form", entry.naive), ("Test", entry.tests)):
        for name in names:
            yield from folded(f"{kind}: <code>{name}</code>", code_block(source_of(name)))
    places = [f"[{Path(file).stem[:2]}, {heading}](../{file})" for file, heading in sections_on(entry.id)]
    if places:
        yield from ("Lessons: " + "; ".join(places), "")
    for part in missing(entry):
        yield from (f"No {part}: {plain(entry.lacks.get(part, 'missing'))}", "")
    for erratum in ERRATA.values():
        if entry.id in erratum.items:
            words = f"({erratum.status}), {erratum.where}: {plain(erratum.says)} {plain(erratum.finding)}"
            yield from (f"**[Erratum](errata.md#{anchor(erratum.id)})** {words}", "")
    yield from (f"On the command line: `condinst-edu trace {entry.id}`", "")


def source_of(name: str) -> str:
    """The source of `condinst_edu.fcos.FCOS`, or of `tests/test_fcos.py::test_targets`; what it is called if gone."""
    if "::" in name:
        file, _, rest = name.partition("::")
        text = (ROOT / file).read_text()
        wanted = rest.split("::")[-1].split("[")[0]
        found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == wanted]
        return "\n".join(ast.get_source_segment(text, node) or "" for node in found) or f"# {name}"
    try:
        return inspect.cleandoc(source(name))
    except (OSError, TypeError):  # a constant
        return f"{name} = {resolve(name)!r}"


def markdown_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield "| " + " | ".join(map(plain, heads)) + " |"
    yield "|" + "---|" * len(heads)
    yield from ("| " + " | ".join(map(plain, row)) + " |" for row in rows)
    yield ""


def plain(text: str) -> str:
    """Text in which nothing means anything to Markdown but code in backticks."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\*_|<$\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def trace_page() -> str:
    """All ids with their code: the overview in front of the papers' pages."""
    lines = ["# What is where", "", "Every equation, rule and table that the project answers for, and its code."]
    lines += ["An id leads to formula, code, naive form, tests and lessons in one place.", ""]
    lines += markdown_table(["status", "what it means"], [[status, words] for status, words in STATUS.items()])
    for paper, entries in by_paper().items():
        lines += [f"## {PAPERS[paper]}", "", f"{coverage(entries)}.", ""]
        rows = [[f"`{e.id}`", e.title, ", ".join(f"`{s}`" for s in e.symbols), e.status] for e in entries]
        lines += markdown_table(["id", "what", "code", "status"], rows)
    return "\n".join(lines)


MADE = ("errata", "tables", "notation")  # modules of condinst_edu.papers that make a page of their own


def pages_of_modules() -> dict[str, str]:
    """{name: page} of those in `MADE`; their ids stand as code, of which conf.py makes links."""
    return {name: importlib.import_module(f"condinst_edu.papers.{name}").page() for name in MADE}


# ------------------------------------------------------------------------------------------------------------ library


def api_pages() -> dict[str, str]:
    """{dotted name: page in reStructuredText} of every module of the library."""
    files = sorted((ROOT / "condinst_edu").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return {name: api_page(name) for name in names}


def api_page(name: str) -> str:
    title = name.removeprefix("condinst_edu.")
    return f"{title}\n{'=' * len(title)}\n\n.. automodule:: {name}\n"


def api_index(names: Iterable[str]) -> str:
    """The front page of the reference: modules with the first sentence of each, ideas first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        groups.setdefault(parts[1] if len(parts) > 2 or is_package(name) else "", []).append(name)
    lines = ["# Library", "", "Each idea is one module that reads from top to bottom; the rest serves them.", ""]
    for group, members in sorted(groups.items()):
        lines += [f"## `condinst_edu{'.' + group if group else ''}`", ""]
        lines += [f"- [{name}](api/{name}.rst): {first_sentence(name)}" for name in members]
        lines += ["", "```{toctree}", ":hidden:", "", *(f"api/{name}" for name in members), "```", ""]
    return "\n".join(lines)


def is_package(name: str) -> bool:
    return name.count(".") == 1 and (ROOT / name.replace(".", "/")).is_dir()


def first_sentence(name: str) -> str:
    """What the module's docstring begins with."""
    file = ROOT / name.replace(".", "/")
    path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return plain(text.split("\n\n")[0].replace("\n", " "))
