"""What `condinst-edu trace` prints: where each equation, rule and table of the papers is in the code."""

import inspect
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Screen

import condinst_edu
from condinst_edu.papers import ERRATA, ITEMS, TABLES, Item, Table, item
from condinst_edu.papers.forms import cell_text
from condinst_edu.papers.items import resolve

ROOT = Path(condinst_edu.__file__).parents[1]  # the checkout: the package is installed in place


def show_trace(console: Console | None = None) -> None:
    """All ids with their code, and the coverage of each paper."""
    console = console or Console()
    screen = Screen("", "what, and the code of today")
    screen.columns[0].no_wrap = True
    for paper, entries in by_paper().items():
        for entry in entries:
            code = "".join(f"\n  [dim]{short(symbol)}[/]" for symbol in entry.symbols)
            screen.add_row(entry.id, escape(entry.title) + code)
        done = sum(bool(entry.symbols) for entry in entries)
        screen.add_row(f"[bold]{paper}[/]", f"[bold]{done} of {len(entries)} have code[/]", end_section=True)
    console.print(screen)
    done = sum(bool(entry.symbols) for entry in ITEMS.values())
    console.print(f"Coverage: {done} of {len(ITEMS)} ids have code ({100 * done / len(ITEMS):.0f} %).")
    console.print("One of them in full: condinst-edu trace condinst:eq-2")


def by_paper() -> dict[str, list[Item]]:
    """The items of each paper, in order."""
    groups: dict[str, list[Item]] = {}
    for entry in ITEMS.values():
        groups.setdefault(entry.id.split(":")[0], []).append(entry)
    return groups


def show_item(name: str, console: Console | None = None) -> None:
    """One id in full: formula, code with file and line, the printed table, errata. Errors: UserError as `item`."""
    from condinst_edu.papers.reproduce import MINIATURES  # here: the list of all ids does without torch

    console = console or Console()
    entry = item(name)
    console.print(f"[bold]{entry.id}[/]  {escape(entry.title)} ({section(entry)})", highlight=False)
    if entry.formula:
        console.print(entry.formula, markup=False, highlight=False, soft_wrap=True)
    for symbol in entry.symbols:
        console.print(f"  {symbol}  {place(symbol)}", highlight=False, soft_wrap=True)
    if not entry.symbols:
        console.print("  no code yet")
    for notebook, heading in sections_on(entry.id):
        console.print(f"  lesson: {notebook}, {heading}", highlight=False, markup=False, soft_wrap=True)
    if entry.id in TABLES:
        console.print(screen_of(TABLES[entry.id]))
    for erratum in ERRATA.values():
        if entry.id in erratum.items:
            console.print(
                f"[bold]Erratum[/] ({erratum.status}), {escape(f'{erratum.where}: {erratum.says} {erratum.finding}')}"
            )
    if entry.id in MINIATURES:
        console.print(f"In miniature: condinst-edu reproduce {entry.id}", highlight=False)


def sections_on(name: str) -> list[tuple[str, str]]:
    """Where lessons name an id: (notebook, heading of the section)."""
    found = []
    for source in sorted((ROOT / "lessons" / "src").glob("[0-9]*.py")):
        heading = ""
        for line in source.read_text().splitlines():
            if match := re.match(r"# ##+ (.+)", line):
                heading = match[1]
            if heading and re.search(rf"`{re.escape(name)}`", line):
                found.append((f"lessons/{source.stem}.ipynb", heading))
    return list(dict.fromkeys(found))


def section(entry: Item) -> str:
    return f"section {entry.section}" if entry.section[0].isdigit() else entry.section


def short(symbol: str) -> str:
    return symbol.removeprefix("condinst_edu.")


def place(symbol: str) -> str:
    """File and line of a symbol."""
    found: Any = resolve(symbol)
    if isinstance(found, property):
        found = found.fget
    return f"{inspect.getsourcefile(found)}:{inspect.getsourcelines(found)[1]}"


def screen_of(table: Table) -> Screen:
    """A paper's table for the terminal."""
    screen = Screen(title=table.caption, caption=table.notes or None)
    for column in table.columns:
        screen.add_column(f"{column.name}\n({column.unit})" if column.unit else column.name)
    for row in table.rows:
        screen.add_row(*map(cell_text, row))
    return screen
