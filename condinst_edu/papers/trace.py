"""From an equation, rule or table of a paper to its code, its naive form, its tests and its lessons.

What `condinst-edu trace` prints, and what the site's pages of the papers are made of (tools/site/pages.py). Lessons are
found by what their sources cite; files and lines are looked up anew each time.
"""

import ast
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as Screen

import condinst_edu
from condinst_edu.papers import ERRATA, ITEMS, TABLES, Erratum, Item, item
from condinst_edu.papers.forms import PAPERS, PARTS, STATUS, Part, Table, cell_text
from condinst_edu.papers.items import key_of, lost_symbols, resolve
from condinst_edu.papers.miniatures import MINIATURES
from condinst_edu.papers.notation import symbols_of

ROOT = Path(condinst_edu.__file__).parents[1]  # the checkout: the package is installed in place


class Place(NamedTuple):
    """A line of a file of the checkout; path as condinst_edu/mask_head.py."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


# ------------------------------------------------------------------------------------------------------ where it stands


@cache
def place(symbol: str) -> Place:
    """File and line of a dotted name. Errors: ImportError or AttributeError where it is gone or renamed."""
    found = code_of(symbol)
    path = Path(inspect.getsourcefile(found) or "")
    inside = path.is_relative_to(ROOT)
    return Place(path.relative_to(ROOT).as_posix() if inside else str(path), inspect.getsourcelines(found)[1])


def source(symbol: str) -> str:
    """The text of a function, class or property."""
    return inspect.getsource(code_of(symbol))


def code_of(symbol: str) -> Any:
    """What a dotted name means, a property as its function."""
    found: Any = resolve(symbol)
    return found.fget if isinstance(found, property) else found


@cache
def lines_of_tests(path: Path) -> dict[str, int]:
    """The test functions of a file, and their lines; none of a file that is not there."""
    if not path.is_file():
        return {}
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {node.name: node.lineno for node in functions if node.name.startswith("test_")}


def place_of_test(test: str) -> Place | None:
    """File and line of tests/test_x.py::test_y; None where there is no such test."""
    path, _, name = test.partition("::")
    line = lines_of_tests(ROOT / path).get(name)
    return None if line is None else Place(path, line)


def sections_on(name: str) -> list[tuple[str, str]]:
    """Where lessons cite an id, in their words or their code: (notebook, heading of the section)."""
    return citations(ROOT / "lessons" / "src").get(name, [])


@cache
def citations(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """All that lessons cite: {id: [(notebook, heading of the section), ...]}."""
    cited = re.compile(rf"(?<![\w.:-])(?:{'|'.join(PAPERS)}):[\w.-]*\w")
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("[0-9]*.py")):
        heading = ""  # of nothing yet: the header lists ids too
        for line in path.read_text().splitlines():
            if match := re.match(r"# ##+ (.+)", line):
                heading = match[1]
            for name in cited.findall(line) if heading else ():
                place = (f"lessons/{path.stem}.ipynb", heading)
                if place not in found.setdefault(name, []):
                    found[name].append(place)
    return found


def missing(entry: Item) -> list[Part]:
    """The parts that an id has not; a naive form is asked of all but tables."""
    parts: dict[Part, bool] = {
        "code": bool(entry.symbols),
        "naive": bool(entry.naive) or entry.is_table,
        "tests": bool(entry.tests),
        "lesson": bool(sections_on(entry.id)),
    }
    return [part for part in PARTS if not parts[part]]


def faults() -> list[str]:
    """What is wrong with the traceability of all ids, in words; nothing, if all is well."""
    found = [f"{lost} is gone" for lost in lost_symbols(ITEMS.values())]
    for entry in ITEMS.values():
        parts = missing(entry)
        found += [f"{entry.id} -> {test} is gone" for test in entry.tests if place_of_test(test) is None]
        found += [f"{entry.id} has no {part}, and no reason is stated" for part in parts if part not in entry.lacks]
        found += [f"{entry.id} states why it has no {part}, and has one" for part in entry.lacks if part not in parts]
    return found


def by_paper() -> dict[str, list[Item]]:
    """The items of each paper, in order."""
    groups: dict[str, list[Item]] = {}
    for entry in ITEMS.values():
        groups.setdefault(entry.paper, []).append(entry)
    return groups


def coverage(entries: list[Item]) -> str:
    """How many of these ids have each part, and how many have all of them or a reason, in words."""
    lost = [missing(entry) for entry in entries]
    counts = [f"{part} {len(entries) - sum(part in parts for parts in lost)}" for part in PARTS]
    covered = sum(set(parts) <= set(entry.lacks) for entry, parts in zip(entries, lost, strict=True))
    return f"{covered} of {len(entries)} ids whole or with a stated reason ({', '.join(counts)})"


# ------------------------------------------------------------------------------------------------------ on the terminal


def show(name: str = "", console: Console | None = None) -> None:
    """What `name` is about: an id, an erratum, a paper with all its ids, or all papers. Errors: UserError as `item`."""
    console = console or Console()
    key = key_of(name)
    if not key or key in PAPERS:
        show_trace([key] if key else list(PAPERS), console)
    elif key in ERRATA and key not in ITEMS:
        show_erratum(ERRATA[key], console)
        console.print(f"Concerns {', '.join(ERRATA[key].items)}: condinst-edu trace {ERRATA[key].items[0]}")
    else:
        show_item(item(name), console)


def show_trace(papers: list[str], console: Console) -> None:
    """All ids of papers with their status and what they have, the coverage of each paper, and the ids of errata."""
    screen = Screen("", "what", "status", "has")
    for k in (0, 2, 3):
        screen.columns[k].no_wrap = True
    groups = {paper: entries for paper, entries in by_paper().items() if paper in papers}
    for entries in groups.values():
        for entry in entries:
            lost = missing(entry)
            marks = ["✓" if part not in lost else "–" if part in entry.lacks else "✗" for part in PARTS]
            if entry.is_table and not entry.naive:
                marks[PARTS.index("naive")] = " "
            screen.add_row(entry.id, escape(entry.title), entry.status, " ".join(marks))
        screen.add_section()
    console.print(screen)
    console.print(f"has: {', '.join(PARTS)}. ✓ there, – not there, for a reason that the id's entry states, ✗ missing.")
    for paper, entries in groups.items():
        console.print(f"  {paper}: {coverage(entries)}", highlight=False, soft_wrap=True)
    covered = [entry for entries in groups.values() for entry in entries]
    console.print(f"Coverage: {coverage(covered)}.", highlight=False, soft_wrap=True)
    errata = [name for name in ERRATA if name.split(":")[0] in papers]
    if errata:
        console.print(f"Errata: {', '.join(errata)}.", highlight=False)
    console.print(f"One of them in full: condinst-edu trace {covered[1].id}", highlight=False)


def show_item(entry: Item, console: Console) -> None:
    """One id in full: formula, symbols, code, naive form, tests, lessons, table, errata."""

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console.print(f"[bold]{entry.id}[/]  {escape(entry.title)} ({section(entry)})", highlight=False)
    if entry.formula:
        line(entry.formula)
    for s in symbols_of(entry.id):
        legend = f"  {s.latex}: {s.meaning}{f'; {s.shape}' if s.shape else ''}; in the code {s.code}"
        line(textwrap.fill(legend, console.width, subsequent_indent="    ", break_long_words=False))
    line(f"  status: {entry.status}: {STATUS[entry.status]}")
    for symbol in entry.symbols:
        line(f"  code: {symbol}  {place(symbol)}")
    for symbol in entry.naive:
        line(f"  naive form: {symbol}  {place(symbol)}")
    for test in entry.tests:
        line(f"  test: {test}  {place_of_test(test) or '(gone)'}")
    for notebook, heading in sections_on(entry.id):
        line(f"  lesson: {notebook}, {heading}")
    for part in missing(entry):
        line(f"  no {part}: {entry.lacks.get(part, 'missing')}")
    if entry.id in TABLES:
        show_table(TABLES[entry.id], console)
    for erratum in ERRATA.values():
        if entry.id in erratum.items:
            show_erratum(erratum, console)
    if entry.id in MINIATURES:
        console.print(f"In miniature: condinst-edu reproduce {entry.id}", highlight=False)


def section(entry: Item) -> str:
    """Where it stands in the paper, in words."""
    return f"section {entry.section}" if entry.section[0].isdigit() else entry.section


def show_erratum(erratum: Erratum, console: Console) -> None:
    """What a paper says, what we find, and where the witness is that works it out."""
    words = f"{erratum.where}: {erratum.says} {erratum.finding}"
    console.print(f"[bold]Erratum[/] ({erratum.status}) {erratum.id}, {escape(words)}", highlight=False)
    witness = f"{erratum.witness.__module__}.{erratum.witness.__name__}"
    console.print(f"  witness: {witness}  {place(witness)}", highlight=False, soft_wrap=True)


def show_table(table: Table, console: Console) -> None:
    """A paper's table; one that is wider than the terminal is printed in full all the same."""
    screen = Screen(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in table.columns:
        screen.add_column(f"{column.name}\n({column.unit})" if column.unit else column.name, no_wrap=True)
    for row in table.rows:
        screen.add_row(*map(cell_text, row))
    screen.width = Measurement.get(console, console.options.update(width=1000), screen).maximum
    for part in (f"[italic]{escape(table.caption)}[/]", screen, escape(table.notes)):
        if part:
            console.print(part, crop=False, highlight=False)
