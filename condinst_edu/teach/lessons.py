"""Lessons: lessons/src/NN_name.py is what is edited; notebooks and the plan for class are made from it.

    make lessons                  build all, run the students' notebooks, print what each took
    make lessons ARGS="02"        one of them
    make lessons ARGS="--check"   run nothing, fail where a file is not what its source gives

A source is a jupytext file in the percent format. Its header holds the lesson's front matter; cells have tags of
`TAGS`. An exercise is four cells: its text (Markdown, the first line is the exercise's id), stub, solution, check. The
student gets text with hints, stub, check and a folded solution; the solution notebook gets text, solution and a check
that has to pass.
"""

import dataclasses
import functools
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condinst_edu import papers
from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.teach.deviations import DEVIATIONS
from condinst_edu.teach.exercises import EXERCISES
from condinst_edu.teach.tiny import ROOT

Cell = dict[str, Any]
Notebook = dict[str, Any]

MARKDOWN: Cell = {"cell_type": "markdown", "metadata": {}}

LESSONS = ROOT / "lessons"
BUDGET, CELL_BUDGET, FIRST_BUDGET = 90, 20, 15  # seconds on two cores: a lesson, one cell of it, its first result
MAX_BYTES, MAX_LINES = 1_000_000, 30  # of a notebook, of a cell

TAGS = {
    "first-result": "the picture or number that a lesson opens with: there 15 s after opening at the latest",
    "demo": "shown in class; the plan lists it",
    "hide-input": "folded: the code is not what the cell is about",
    "play": "a widget, or its static picture",
    "exercise": "text of an exercise",
    "stub": "what the student begins with; in the student's notebook only",
    "solution": "the answer; folded in the student's notebook, a cell in the solution notebook",
    "check": "calls `check`",
    "instructor": "talking points, in the plan only; a first line `minutes: 5` gives the section its time",
}
LEVELS = {1: "easy", 2: "medium", 3: "hard"}
FOLDER = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|work|mnt)/[\w./-]*")
HEADER_FIELDS = {"title", "minutes", "needs", "gives", "papers"}


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A source that was read. minutes: to read, do and run; needs, gives: in words; papers: ids of what it covers."""

    name: str
    title: str
    minutes: dict[str, int]
    needs: list[str]
    gives: list[str]
    papers: list[str]
    cells: list[Cell]

    @property
    def number(self) -> int:
        return int(self.name[:2])


def lesson_names() -> list[str]:
    """All lessons that have a source, in order: 00_data, ..."""
    return sorted(path.stem for path in (LESSONS / "src").glob("[0-9][0-9]_*.py"))


@functools.cache
def read_lesson(name: str) -> Lesson:
    """Read and check a source. Errors: UserError names the file and what is wrong in it."""
    import jupytext  # type: ignore[import-untyped]

    path = LESSONS / "src" / f"{name}.py"
    notebook = jupytext.read(path, fmt="py:percent")
    header = notebook.metadata.get("lesson")
    if not isinstance(header, dict) or header.keys() != HEADER_FIELDS:
        raise UserError(f"{path}: the header's `lesson` has exactly the fields {', '.join(sorted(HEADER_FIELDS))}")
    if header["minutes"].keys() != {"read", "do", "run"}:
        raise UserError(f"{path}: minutes are those to read, do and run")
    if unknown := set(header["papers"]) - papers.ITEMS.keys():
        raise UserError(f"{path}: no paper has the id {min(unknown)}")
    lesson = Lesson(name=name, cells=list(notebook.cells), **header)
    for i, cell in enumerate(lesson.cells):
        check_cell(path, i, cell)
    check_exercises(path, lesson)
    return lesson


def check_cell(path: Path, index: int, cell: Cell) -> None:
    """UserError where a cell is too long or has a tag that nothing knows."""
    place = f"{path}, cell {index} ({first_line(cell)!r})"
    if unknown := set(tags(cell)) - TAGS.keys():
        raise UserError(f"{place}: unknown tag {min(unknown)}; there are {', '.join(TAGS)}")
    if cell["cell_type"] == "code" and cell["source"].count("\n") >= MAX_LINES:
        raise UserError(f"{place} has more than {MAX_LINES} lines")
    if unknown := paper_ids(cell["source"]) - papers.ITEMS.keys():
        raise UserError(f"{place} names {min(unknown)}, which no paper has")


def check_exercises(path: Path, lesson: Lesson) -> None:
    """UserError unless the lesson has all its exercises, each with text, stub, solution and check, in this order."""
    parts = [(k, cell) for cell in lesson.cells for k in ("exercise", "stub", "solution", "check") if k in tags(cell)]
    found = []
    for k in range(0, len(parts), 4):
        group = parts[k : k + 4]
        exercise = first_line(group[0][1])
        if [kind for kind, _ in group] != ["exercise", "stub", "solution", "check"]:
            raise UserError(f"{path}: after {exercise!r}, an exercise is text, stub, solution and check, in this order")
        if not group[3][1]["source"].startswith(f'check("{exercise}", '):
            raise UserError(f'{path}: the check of {exercise} has to begin with check("{exercise}", ')
        found.append(exercise)
    if sorted(found) != sorted(e.id for e in EXERCISES.values() if e.lesson == lesson.number):
        raise UserError(f"{path}: its exercises are not those of lesson {lesson.number}: {', '.join(found)}")


def tags(cell: Cell) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def first_line(cell: Cell) -> str:
    return str(cell["source"]).strip().partition("\n")[0]


def paper_ids(text: str) -> set[str]:
    """Ids such as condinst:eq-2 that are named in a text."""
    prefixes = {name.partition(":")[0] for name in papers.ITEMS}
    return set(re.findall(rf"\b(?:{'|'.join(sorted(prefixes))}):[a-z0-9-]*[a-z0-9]", text))


# ------------------------------------------------------------------------------------------------------- notebooks


def student_notebook(lesson: Lesson) -> Notebook:
    """What a student opens, without outputs."""
    cells: list[Cell] = []
    for i, cell in enumerate(lesson.cells):
        kinds, text = tags(cell), cell["source"]
        if "instructor" in kinds:
            continue
        if "solution" in kinds:
            solution = (i, text)
            continue
        if "exercise" in kinds:
            text = exercise_text(text)
        cells.append(new_cell(lesson, i, cell, text + ";" if "check" in kinds else text))
        if "check" in kinds:
            position, code = solution
            folded = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"
            cells.append(new_cell(lesson, position, MARKDOWN, folded))
    return new_notebook(lesson, cells)


def solution_notebook(lesson: Lesson) -> Notebook:
    """The same with the answers, and checks that have to pass; without outputs."""
    cells: list[Cell] = []
    for i, cell in enumerate(lesson.cells):
        kinds, text = tags(cell), cell["source"]
        if "instructor" in kinds or "stub" in kinds:
            continue
        text = exercise_text(text) if "exercise" in kinds else text
        cells.append(new_cell(lesson, i, cell, f"assert {text}.passed" if "check" in kinds else text))
    return new_notebook(lesson, cells)


def title(lesson: Lesson) -> str:
    """The first cell: title and front matter."""
    minutes = lesson.minutes
    lines = [
        f"# {lesson.number}. {lesson.title}",
        "",
        f"**Time**: {minutes['read']} minutes to read, {minutes['do']} to do the exercises, "
        f"{minutes['run']} to run on a laptop.  ",
        f"**Needs**: {'; '.join(lesson.needs)}.  ",
        f"**Gives**: {'; '.join(lesson.gives)}.  ",
    ]
    if lesson.papers:
        lines.append(f"**Papers**: {', '.join(f'`{p}`' for p in lesson.papers)}.")
    return "\n".join(lines).strip()


def exercise_text(text: str) -> str:
    """An exercise's text under its heading, its hints folded below."""
    name, _, rest = text.strip().partition("\n")
    exercise = EXERCISES[name]
    hints = "\n".join(f"{k}. {hint}" for k, hint in enumerate(exercise.hints, start=1))
    return (
        f"### {exercise.title}\n\n*{LEVELS[exercise.difficulty]}, {exercise.minutes} minutes* (`{name}`)\n\n"
        f"{rest.strip()}\n\n<details><summary>Hints</summary>\n\n{hints}\n\n</details>"
    )


def new_cell(lesson: Lesson, position: int, cell: Cell, source: str) -> Cell:
    """A cell whose id follows from lesson and position in the source, with the tags of its source."""
    metadata: dict[str, Any] = {"tags": tags(cell)} if tags(cell) else {}
    if "hide-input" in tags(cell):
        metadata["jupyter"] = {"source_hidden": True}
    made: Cell = {"cell_type": cell["cell_type"], "id": f"l{lesson.number:02}-c{position + 1:02}"}
    made |= {"metadata": metadata, "source": source.strip()}
    return made | ({"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {})


def new_notebook(lesson: Lesson, cells: list[Cell]) -> Notebook:
    from nbformat import v4

    first = new_cell(lesson, -1, MARKDOWN, title(lesson))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    front = {name: getattr(lesson, name) for name in sorted(HEADER_FIELDS)}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "lesson": front}
    return dict(v4.new_notebook(cells=[first, *cells], metadata=metadata))


# ------------------------------------------------------------------------------------------------------ plan for class


def instructor_plan(lesson: Lesson) -> str:
    """The plan for class as Markdown: per section minutes, demo cells and talking points; exercises, mistakes."""
    sections: list[tuple[str, list[str], list[str], int]] = []
    for i, cell in enumerate(lesson.cells):
        if heading := re.match(r"## +(.+)", cell["source"]):
            sections.append((heading[1], [], [], 0))
        if not sections:
            continue
        name, shown, points, minutes = sections[-1]
        if "demo" in tags(cell):
            shown.append(f"- cell `l{lesson.number:02}-c{i + 1:02}`: `{first_line(cell)}`")
        if "instructor" in tags(cell):
            text = cell["source"].strip()
            if given := re.match(r"minutes: *(\d+)\n*", text):
                minutes, text = int(given[1]), text[given.end() :]
            points.append(text)
        sections[-1] = (name, shown, points, minutes)
    total = sum(section[3] for section in sections)
    lines = [f"# Plan for class: {lesson.number}. {lesson.title}", ""]
    lines += [
        f"{total} minutes without the exercises. Run all cells of `lessons/{lesson.name}.ipynb` beforehand; those"
    ]
    lines += ["to show are named by their ids and marked with the tag `demo`.", ""]
    for name, shown, points, minutes in sections:
        if shown or points or minutes:
            lines += [f"## {name}" + (f" ({minutes} min)" if minutes else ""), ""]
            lines += ["Show:", "", *shown, ""] if shown else []
            lines += [*"\n\n".join(points).splitlines(), ""] if points else []
    lines += [*plan_of_exercises(lesson)]
    return "\n".join(lines).rstrip() + "\n"


def plan_of_exercises(lesson: Lesson) -> Iterator[str]:
    """What students do, and the mistakes that the checkers name: what to expect in class."""
    yield from ("## Exercises, and the misconceptions to expect", "")
    for exercise in (e for e in EXERCISES.values() if e.lesson == lesson.number):
        yield f"**{exercise.title}** (`{exercise.id}`, {LEVELS[exercise.difficulty]}, {exercise.minutes} min)"
        yield ""
        yield from (f"- {DEVIATIONS[name].line}" for name in exercise.deviations)
        yield ""


# -------------------------------------------------------------------------------------------------------- build, check


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that a notebook took: in all, its slowest cell (and that one's id), from opening to its first result."""

    total: float
    slowest: float
    slowest_id: str
    first: float


def run_notebook(notebook: Notebook, folder: Path = LESSONS) -> Timing:
    """Run a notebook in a new kernel, outputs into it, with no way to the network.

    Errors: nbclient's CellExecutionError, with the traceback, where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(notebook)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(node, timeout=300, kernel_name="python3", resources=place, coalesce_streams=True)
    seconds: dict[str, float] = {}
    first = 0.0
    begin = time.monotonic()
    with offline_kernels(), client.setup_kernel():
        for i, cell in enumerate(node.cells):
            start = time.monotonic()
            client.execute_cell(cell, i)
            seconds[cell.id] = time.monotonic() - start
            if "first-result" in tags(cell):
                first = time.monotonic() - begin
    notebook["cells"] = [clean_cell(cell) for cell in node.cells]
    slowest = max(seconds, key=seconds.__getitem__)
    return Timing(time.monotonic() - begin, seconds[slowest], slowest, first)


def clean_cell(cell: Cell) -> Cell:
    """Without what changes from run to run or belongs to a running kernel: times, the state of widgets."""
    cell["metadata"].pop("execution", None)
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        data.pop("application/vnd.jupyter.widget-view+json", None)
        if "image/png" in data:
            data["text/plain"] = ""  # <Figure ...> says nothing
    return dict(cell)


OFFLINE = '''"""Lets a kernel reach this machine alone."""
import socket

_connect = socket.socket.connect


def connect(self, address):
    internet = self.family in (socket.AF_INET, socket.AF_INET6)
    if internet and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"no network in a lesson: {address}")
    return _connect(self, address)


socket.socket.connect = connect
'''


@contextmanager
def offline_kernels() -> Iterator[None]:
    """Kernels that start within the block are this environment's, offline, and without a user's own settings."""
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "offline.py").write_text(OFFLINE)
        before = {name: os.environ.get(name) for name in ("IPYTHONDIR", "JUPYTER_PREFER_ENV_PATH")}
        os.environ.update(IPYTHONDIR=folder, JUPYTER_PREFER_ENV_PATH="1")
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def paths_of(name: str) -> dict[str, Path]:
    """The files that are made from a source."""
    return {
        "student": LESSONS / f"{name}.ipynb",
        "solution": LESSONS / "solutions" / f"{name}.ipynb",
        "plan": LESSONS / "instructor" / f"{name}.md",
    }


def build_lesson(name: str) -> Timing:
    """Write a lesson's three files, the student's notebook with its outputs."""
    import nbformat

    lesson, paths = read_lesson(name), paths_of(name)
    student = student_notebook(lesson)
    timing = run_notebook(student)
    for path, notebook in ((paths["student"], student), (paths["solution"], solution_notebook(lesson))):
        text = nbformat.writes(nbformat.from_dict(notebook))
        if len(text.encode()) > MAX_BYTES:
            raise UserError(f"{path.name} has {len(text.encode())} bytes, over {MAX_BYTES}: smaller or fewer pictures")
        with whole_file(path) as temporary:
            temporary.write_text(text + "\n")
    with whole_file(paths["plan"]) as temporary:
        temporary.write_text(instructor_plan(lesson))
    return timing


def problems(name: str) -> list[str]:
    """Where the files of a lesson are not what its source gives; outputs are not compared."""
    import nbformat

    lesson, paths = read_lesson(name), paths_of(name)
    found = []
    for kind, made in (("student", student_notebook(lesson)), ("solution", solution_notebook(lesson))):
        path = paths[kind]
        if not path.exists():
            found.append(f"{path} is missing")
            continue
        stored = nbformat.read(path, as_version=4)
        if path.stat().st_size > MAX_BYTES:
            found.append(f"{path} has more than {MAX_BYTES} bytes")
        if "widgets" in stored.metadata or "widget-view" in path.read_text():
            found.append(f"{path} holds the state of a widget")
        if without_outputs(stored) != without_outputs(made):
            found.append(f"{path} is not what lessons/src/{name}.py gives")
        if kind == "student" and not any(cell.get("outputs") for cell in stored.cells):
            found.append(f"{path} has no outputs")
        folders = [(cell.id, FOLDER.search(str(cell.get("outputs", "")))) for cell in stored.cells]
        found += [
            f"{path}, cell {name}: an output names {match[0]}, of one machine" for name, match in folders if match
        ]
    if not paths["plan"].exists() or paths["plan"].read_text() != instructor_plan(lesson):
        found.append(f"{paths['plan']} is not what lessons/src/{name}.py gives")
    return found


def without_outputs(notebook: Notebook) -> dict[str, Any]:
    cells = [{k: cell[k] for k in ("cell_type", "id", "metadata", "source")} for cell in notebook["cells"]]
    return {"cells": cells, "metadata": notebook["metadata"]}


def main(arguments: list[str]) -> int:
    """Build or check the lessons named (02 or 02_dynamic_mask_heads; all by default); returns the exit status."""
    names = [a for a in arguments if not a.startswith("-")]
    chosen = [n for n in lesson_names() if not names or any(n.startswith(a) for a in names)]
    if not chosen:
        raise UserError(f"no lesson is named {' or '.join(names)}; there are {', '.join(lesson_names())}")
    if "--check" in arguments:
        found = [problem for name in chosen for problem in problems(name)]
        print("\n".join(found) or f"{len(chosen)} lessons are what their sources give")
        return 1 if found else 0
    for name in chosen:
        timing = build_lesson(name)
        print(
            f"{name}: {timing.total:.0f} s of {BUDGET}, first result after {timing.first:.0f} s of {FIRST_BUDGET}, "
            f"slowest cell {timing.slowest_id} {timing.slowest:.0f} s of {CELL_BUDGET}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"lessons: {error}")
