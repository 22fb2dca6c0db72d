"""A lesson's notebook for the projector: the cells that are shown in class, and folded, the code between them."""

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
    """Indices of the code cells up to the last one to show, but for exercises, which nothing else needs."""
    code = [i for i, cell in enumerate(lesson.cells) if cell["cell_type"] == "code" and not LEFT_OUT & set(tags(cell))]
    last = max((i for i in code if SHOWN & set(tags(lesson.cells[i]))), default=-1)
    return {i for i in code if i <= last}
