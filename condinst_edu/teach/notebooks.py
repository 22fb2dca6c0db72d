"""What a lesson's source means: its front matter, and the notebooks and the plan for class that are made from it.

A source, lessons/src/NN_name.py, is a jupytext file in the percent format. Its header holds the front matter; cells
have tags of `TAGS`. An exercise is four cells: its text (Markdown, whose first line is the exercise's id), stub,
solution, check. The student gets text with hints, stub, check and a folded solution; the solution notebook gets text,
solution and a check that has to pass. `condinst_edu.teach.lessons` writes and runs what is made here.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from condinst_edu import papers
from condinst_edu.errors import UserError
from condinst_edu.teach.deviations import DEVIATIONS
from condinst_edu.teach.exercises import EXERCISES
from condinst_edu.teach.tiny import ROOT

Cell = dict[str, Any]
Notebook = dict[str, Any]

MARKDOWN: Cell = {"cell_type": "markdown", "metadata": {}}

LESSONS = ROOT / "lessons"
MAX_LINES = 30  # of a cell

TAGS = {
    "first-result": "the picture or number that a lesson opens with: there 15 s after opening at the latest",
    "demo": "shown in class; the plan lists it",
    "hide-input": "folded: the code is not what the cell is about",
    "play": "a widget, or its static picture",
    "exercise": "text of an exercise",
    "stub": "what the student begins with; in the student's notebook only",
    "solution": "the answer; folded in the student's notebook, a cell in the solution notebook",
    "check": "calls `check`",
    "instructor": "talking points, in the plan only; first lines `minutes: 5` and `late: what to leave out (saves 3)`",
}
SHOWN = {"first-result", "demo", "play"}  # tags of what is shown in class
LEVELS = {1: "easy", 2: "medium", 3: "hard"}
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
    return new_notebook(lesson, with_quiz(lesson, cells))


def solution_notebook(lesson: Lesson) -> Notebook:
    """The same with the answers, and checks that have to pass; without outputs."""
    cells: list[Cell] = []
    for i, cell in enumerate(lesson.cells):
        kinds, text = tags(cell), cell["source"]
        if "instructor" in kinds or "stub" in kinds:
            continue
        text = exercise_text(text) if "exercise" in kinds else text
        cells.append(new_cell(lesson, i, cell, f"assert {text}.passed" if "check" in kinds else text))
    return new_notebook(lesson, with_quiz(lesson, cells))


def with_quiz(lesson: Lesson, cells: list[Cell]) -> list[Cell]:
    """The cells with the lesson's questions, answers folded, in front of the last one, which sums up."""
    questions = read_quiz(lesson.name)
    if not questions:
        return cells
    lines = ["## Questions", "", "Answer before you unfold."]
    for k, one in enumerate(questions, start=1):
        lines += [
            "",
            f"**{k}.** {one.question}",
            "",
            "<details><summary>Answer</summary>",
            "",
            one.answer,
            "",
            "</details>",
        ]
    quiz = {**new_cell(lesson, 0, MARKDOWN, "\n".join(lines)), "id": f"l{lesson.number:02}-quiz"}
    return [*cells[:-1], quiz, cells[-1]]


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


@dataclasses.dataclass
class Section:
    """A section of the plan: its heading, cells to show, points to make, minutes, what to leave out, seconds to run."""

    name: str
    shown: list[str] = dataclasses.field(default_factory=list)
    points: list[str] = dataclasses.field(default_factory=list)
    minutes: int = 0
    late: str = ""
    seconds: float = 0.0


def sections_of(lesson: Lesson, seconds: Mapping[str, float]) -> list[Section]:
    """What a plan says of each section; seconds: what cells took to run, by id."""
    sections: list[Section] = []
    for i, cell in enumerate(lesson.cells):
        if heading := re.match(r"## +(.+)", cell["source"]):
            sections.append(Section(heading[1]))
        if not sections:
            continue
        section, name = sections[-1], f"l{lesson.number:02}-c{i + 1:02}"
        section.seconds += seconds.get(name, 0.0)
        if "demo" in tags(cell):
            place = f"../{lesson.name}.ipynb#cell-id={name}"
            section.shown.append(f"- cell [`{name}`]({place}): `{first_line(cell)}`")
        if "instructor" in tags(cell):
            text = cell["source"].strip()
            if given := re.match(r"minutes: *(\d+)\n*", text):
                section.minutes, text = section.minutes + int(given[1]), text[given.end() :]
            if given := re.match(r"late: *(.+)\n*", text):
                section.late, text = given[1], text[given.end() :]
            section.points.append(text)
    return sections


def measured_seconds(lesson: Lesson) -> dict[str, float]:
    """What the lesson's cells took when `make lessons` ran them last, by id; none before that."""
    path = LESSONS / "instructor" / "seconds.json"
    return dict(json.loads(path.read_text()).get(lesson.name, {})) if path.exists() else {}


def instructor_plan(lesson: Lesson) -> str:
    """The plan for class as Markdown: minutes, demo cells and talking points of each section; exercises, questions."""
    sections = sections_of(lesson, measured_seconds(lesson))
    total, run = sum(section.minutes for section in sections), sum(section.seconds for section in sections)
    lines = [f"# Plan for class: {lesson.number}. {lesson.title}", ""]
    took = f" ({run:.0f} s)" if run else ""
    lines += [f"{total} minutes without the exercises. Run all cells of [the lesson](../{lesson.name}.ipynb)"]
    lines += [f"beforehand{took}, or of [its cells to show]({lesson.name}.ipynb) alone, with what they need folded."]
    # JupyterLab 4.6 looks for the cell when the click opens the notebook, often before its cells are there.
    lines += [
        "In JupyterLab (right click here, Show Markdown Preview), open the lesson before you follow a link to a cell:"
    ]
    lines += ["in a notebook that is open the link goes to the cell, else perhaps to the top."]
    lines += ["", *plan_of_time(sections)]
    for section in (s for s in sections if s.shown or s.points or s.minutes):
        lines += [f"## {section.name}" + (f" ({section.minutes} min)" if section.minutes else ""), ""]
        lines += ["Show:", "", *section.shown, ""] if section.shown else []
        lines += [*"\n\n".join(section.points).splitlines(), ""] if section.points else []
    return "\n".join([*lines, *plan_of_exercises(lesson), *plan_of_questions(lesson)]).rstrip() + "\n"


def plan_of_time(sections: list[Section]) -> Iterator[str]:
    """The table in front: minutes as planned, seconds as measured, what to leave out."""
    yield from ("| section | minutes | its cells run | if you are late |", "|---|---|---|---|")
    for s in sections:
        if s.minutes or s.late or s.seconds >= 1:
            run = f"{s.seconds:.0f} s" if s.seconds >= 1 else ""
            yield f"| {s.name} | {s.minutes or ''} | {run} | {s.late} |"
    yield ""


def plan_of_questions(lesson: Lesson) -> Iterator[str]:
    """The questions of lessons/quiz with their answers, for the end of the hour."""
    questions = read_quiz(lesson.name)
    if questions:
        yield from ("## Questions for the end", "")
    for k, one in enumerate(questions, start=1):
        yield from (f"**{k}.** {one.question}", "", f"{one.answer}", "")


class Question(NamedTuple):
    """A question of the quiz and its answer, in Markdown."""

    question: str
    answer: str


def read_quiz(name: str) -> list[Question]:
    """The questions of a lesson, from lessons/quiz/NN_name.md; none where there is no such file.

    Errors: UserError where a question has no answer.
    """
    path = LESSONS / "quiz" / f"{name}.md"
    if not path.exists():
        return []
    parts = re.split(r"^\*\*\d+\.\*\* ", path.read_text(), flags=re.MULTILINE)[1:]
    found = [
        re.fullmatch(r"(.+?)<details><summary>Answer</summary>\n\n(.+?)</details>\s*", p, re.DOTALL) for p in parts
    ]
    if not all(found):
        raise UserError(f"{path}: question {found.index(None) + 1} is not followed by a folded answer")
    return [Question(one[1].strip(), one[2].strip()) for one in found if one]


def plan_of_exercises(lesson: Lesson) -> Iterator[str]:
    """What students do, and the mistakes that the checkers name: what to expect in class."""
    yield from ("## Exercises, and the misconceptions to expect", "")
    for exercise in (e for e in EXERCISES.values() if e.lesson == lesson.number):
        yield f"**{exercise.title}** (`{exercise.id}`, {LEVELS[exercise.difficulty]}, {exercise.minutes} min)"
        yield ""
        yield from (f"- {DEVIATIONS[name].line}" for name in exercise.deviations)
        yield ""
