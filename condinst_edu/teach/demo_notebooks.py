"""A lesson's notebook for the projector: the cells that are shown in class, and folded, whatever these need to run.

What a cell needs is read off its names: a cell is kept if a later kept one uses a name that it defines or changes.
"""

import ast
from typing import Any

from condinst_edu.teach.notebooks import (
    MARKDOWN,
    SHOWN,
    Cell,
    Lesson,
    Notebook,
    first_line,
    new_cell,
    new_notebook,
    tags,
)

LEFT_OUT = {"exercise", "stub", "solution", "check", "instructor"}


def demo_notebook(lesson: Lesson) -> Notebook:
    """The notebook, without outputs: headings, cells to show, folded cells."""
    kept = needed(lesson)
    cells: list[Cell] = []
    heading: tuple[int, str] | None = None
    for i, cell in enumerate(lesson.cells):
        if cell["source"].startswith("## "):
            heading = (i, first_line(cell))
        if i not in kept:
            continue
        made = new_cell(lesson, i, cell, cell["source"])
        shown = bool(SHOWN & set(tags(cell)))
        if shown and heading:
            cells.append(new_cell(lesson, heading[0], MARKDOWN, heading[1]))
            heading = None
        if not shown:
            made["metadata"]["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
        cells.append(made)
    notebook = new_notebook(lesson, cells)
    text = f"# {lesson.number}. {lesson.title}\n\nFor the projector: run all cells, then fold them out as you go."
    notebook["cells"][0]["source"] = text
    return notebook


def needed(lesson: Lesson) -> set[int]:
    """Indices of the code cells to show and of those that they need, directly or through others."""
    kept: set[int] = set()
    wanted: set[str] = set()
    for i, cell in reversed(list(enumerate(lesson.cells))):
        if cell["cell_type"] != "code" or LEFT_OUT & set(tags(cell)):
            continue
        uses, defines, changes = names_in(cell["source"])
        if SHOWN & set(tags(cell)) or wanted & (defines | changes):
            kept.add(i)
            wanted = (wanted - defines) | uses
    return kept


def names_in(source: str) -> tuple[set[str], set[str], set[str]]:
    """The names that a cell uses, those that it defines, and those whose objects it changes: x.fit(), x[0] = 1."""
    tree = ast.parse(source)
    uses, defines, changes = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (uses if isinstance(node.ctx, ast.Load) else defines).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defines.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defines |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            changes.add(root(node))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            changes.add(root(node.value.func))
    imported = {"torch", "pic", "plt", "print"}  # calling these changes nothing that a later cell reads
    return uses, defines, changes - imported - {""}


def root(node: Any) -> str:
    """The name at the beginning of a.b[0].c; empty where there is none, and for a plain call of a function."""
    if isinstance(node, ast.Name):
        return ""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
