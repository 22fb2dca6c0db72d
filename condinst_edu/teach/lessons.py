"""Lessons: lessons/src/NN_name.py is what is edited; notebooks and the plan for class are made from it.

make lessons                  build all, run the students' notebooks, print what each took
make lessons ARGS="02"        one of them
make lessons ARGS="--check"   run nothing, fail where a file is not what its source gives
make lessons ARGS="--plans"   write what is for class alone, run nothing
"""

import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from condinst_edu.errors import UserError
from condinst_edu.files import whole_file
from condinst_edu.progress import progress_bar
from condinst_edu.teach.demo_notebooks import demo_notebook
from condinst_edu.teach.notebooks import (
    LESSONS,
    Cell,
    Lesson,
    Notebook,
    instructor_plan,
    lesson_names,
    read_lesson,
    solution_notebook,
    student_notebook,
    tags,
)
from condinst_edu.teach.stored import WIDGET, strip_widgets

BUDGET, CELL_BUDGET, FIRST_BUDGET = 90, 20, 15  # seconds on two cores: a lesson, one cell of it, its first result
START, END = "<!-- lessons: made by make lessons -->", "<!-- end -->"
MAX_BYTES = 1_000_000  # of a notebook
FOLDER = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|work|mnt)/[\w./-]*")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that a notebook took: in all, its slowest cell and its id, to its first result; each cell's, by id."""

    total: float
    slowest: float
    slowest_id: str
    first: float
    cells: dict[str, float] = dataclasses.field(default_factory=dict)


def run_notebook(notebook: Notebook, folder: Path = LESSONS) -> Timing:
    """Run a notebook in a new kernel, outputs into it, with no way to the network.

    Errors: nbclient's CellExecutionError, with the traceback, where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    node = nbformat.from_dict(notebook)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(node, timeout=300, kernel_name="python3", resources=place, coalesce_streams=True)
    client.extra_arguments = ["--IPKernelApp.log_level=ERROR"]  # no word on how the kernel is connected
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
    notebook["cells"] = [clean_cell(cell) for cell in strip_widgets(node).cells]
    slowest = max(seconds, key=seconds.__getitem__)
    return Timing(time.monotonic() - begin, seconds[slowest], slowest, first, seconds)


def clean_cell(cell: Cell) -> Cell:
    """Without what changes from run to run: times; without words for what is a picture."""
    cell["metadata"].pop("execution", None)
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            output["data"]["text/plain"] = ""  # <Figure ...> says nothing
    return dict(cell)


OFFLINE = '''"""Lets a kernel reach this machine alone."""
import socket



def local_alone(connect):
    def checked(self, address):
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if internet and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise OSError(f"no network in a lesson: {address}")
        return connect(self, address)

    return checked


socket.socket.connect = local_alone(socket.socket.connect)
socket.socket.connect_ex = local_alone(socket.socket.connect_ex)
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
        "demo": LESSONS / "instructor" / f"{name}.ipynb",
    }


def build_lesson(name: str) -> Timing:
    """Write a lesson's files, the student's notebook with its outputs."""
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
    note_seconds(lesson.name, timing)
    write_for_class(lesson)
    return timing


def write_for_class(lesson: Lesson) -> None:
    """The plan, and the notebook for the projector."""
    import nbformat

    paths = paths_of(lesson.name)
    for path, text in (
        (paths["plan"], instructor_plan(lesson)),
        (paths["demo"], nbformat.writes(nbformat.from_dict(demo_notebook(lesson))) + "\n"),
    ):
        with whole_file(path) as temporary:
            temporary.write_text(text)


def note_seconds(name: str, timing: Timing) -> None:
    """Keep what the cells took, if a tenth of a second or more, for the plans' measured times."""
    path = LESSONS / "instructor" / "seconds.json"
    noted = json.loads(path.read_text()) if path.exists() else {}
    noted[name] = {cell: round(seconds, 1) for cell, seconds in timing.cells.items() if seconds >= 0.1}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(dict(sorted(noted.items())), indent=1) + "\n")


def bench_lessons(as_json: bool) -> None:
    """Run every student's and solution notebook and print what each took beside its budget; nothing is written."""
    rows = []
    with progress_bar(not as_json) as progress:
        task = progress.add_task("lessons", total=2 * len(lesson_names()), note="")
        for name in lesson_names():
            for kind, make in (("student", student_notebook), ("solution", solution_notebook)):
                progress.update(task, note=f"{name}, {kind}")
                timing = run_notebook(make(read_lesson(name)))
                figures = {k: v for k, v in dataclasses.asdict(timing).items() if k != "cells"}
                rows.append({"lesson": name, "notebook": kind, **figures})
                progress.advance(task)
    if as_json:
        print(json.dumps({"budgets": {"total": BUDGET, "slowest": CELL_BUDGET, "first": FIRST_BUDGET}, "rows": rows}))
        return
    screen = Table(title="Seconds, of a budget in brackets")
    screen.add_column("notebook", no_wrap=True)
    for column, budget in (("all", BUDGET), ("first result", FIRST_BUDGET), ("slowest cell", CELL_BUDGET)):
        screen.add_column(f"{column} ({budget})", justify="right")
    for row in rows:
        slowest = f"{row['slowest']:.1f} ({row['slowest_id']})"
        screen.add_row(f"{row['lesson']}, {row['notebook']}", f"{row['total']:.1f}", f"{row['first']:.1f}", slowest)
    Console().print(screen)


def problems(name: str) -> list[str]:
    """Where the files of a lesson are not what its source gives; outputs are not compared."""
    import nbformat

    lesson, paths = read_lesson(name), paths_of(name)
    found = []
    for kind, made in (
        ("student", student_notebook(lesson)),
        ("solution", solution_notebook(lesson)),
        ("demo", demo_notebook(lesson)),
    ):
        path = paths[kind]
        if not path.exists():
            found.append(f"{path} is missing")
            continue
        stored = nbformat.read(path, as_version=4)
        if path.stat().st_size > MAX_BYTES:
            found.append(f"{path} has more than {MAX_BYTES} bytes")
        if "widgets" in stored.metadata or WIDGET in path.read_text():
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


def contents(text: str) -> str:
    """lessons/README.md with its table of the lessons, between two marks, made anew."""
    rows = ["| lesson | what you take away | read | exercises |", "|---|---|---|---|"]
    for lesson in map(read_lesson, lesson_names()):
        link = f"[{lesson.number}. {lesson.title}]({lesson.name}.ipynb)"
        minutes = lesson.minutes
        rows.append(f"| {link} | {'; '.join(lesson.gives)} | {minutes['read']} min | {minutes['do']} min |")
    before, _, rest = text.partition(START)
    return before + START + "\n\n" + "\n".join(rows) + "\n\n" + END + rest.partition(END)[2]


def main(arguments: list[str]) -> int:
    """Build or check the lessons named (02 or 02_dynamic_mask_heads; all by default); returns the exit status."""
    names = [a for a in arguments if not a.startswith("-")]
    chosen = [n for n in lesson_names() if not names or any(n.startswith(a) for a in names)]
    if not chosen:
        raise UserError(f"no lesson is named {' or '.join(names)}; there are {', '.join(lesson_names())}")
    readme = LESSONS / "README.md"
    if "--check" in arguments:
        found = [problem for name in chosen for problem in problems(name)]
        if readme.read_text() != contents(readme.read_text()):
            found.append(f"{readme}: its table is not what the sources give")
        print("\n".join(found) or f"{len(chosen)} lessons are what their sources give")
        return 1 if found else 0
    for name in chosen:
        if "--plans" in arguments:
            write_for_class(read_lesson(name))
            continue
        timing = build_lesson(name)
        print(
            f"{name}: {timing.total:.0f} s of {BUDGET}, first result after {timing.first:.0f} s of {FIRST_BUDGET}, "
            f"slowest cell {timing.slowest_id} {timing.slowest:.0f} s of {CELL_BUDGET}",
            flush=True,
        )
    with whole_file(readme) as temporary:
        temporary.write_text(contents(readme.read_text()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"lessons: {error}")
