"""Lessons: what is in git is what the sources give; a bad source is refused in words; kernels have no network."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from condinst_edu.bench import Bench, run_bench
from condinst_edu.errors import UserError
from condinst_edu.teach import demo_notebooks, lessons, notebooks
from condinst_edu.teach.deviations import DEVIATIONS
from condinst_edu.teach.exercises import EXERCISES
from condinst_edu.teach.notebooks import LESSONS, lesson_names, read_lesson, student_notebook

HEADER = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3 (ipykernel), language: python, name: python3}
#   lesson:
#     title: A trial
#     minutes: {read: 1, do: 2, run: 3}
#     needs: [nothing]
#     gives: [a check of the machinery]
#     papers: ["condinst:eq-2"]
# ---

"""
BODY = """# %% tags=["first-result", "demo"]
print("a result")
class check:  # the kernel does not know the exercise of this trial
    passed = True
    def __init__(self, name, answer): pass

# %% [markdown]
# ## The idea (`condinst:eq-2`)

# %% [markdown] tags=["instructor"]
# minutes: 7
# late: say it in half the words (saves 3)
# Say this aloud.
#

# %% tags=["hide-input", "demo"]
1 + 1

# %% [markdown] tags=["instructor"]
# minutes: 2
# And this.
"""
EXERCISE = """
# %% [markdown] tags=["exercise"]
# 99-half
# Write `half(x)`.

# %% tags=["stub"]
def half(x):
    raise NotImplementedError

# %% tags=["solution"]
def half(x):
    return x / 2

# %% tags=["check"]
check("99-half", half)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty lessons folder in the place of the real one."""
    (tmp_path / "src").mkdir()
    (tmp_path / "README.md").write_text(f"Before.\n{lessons.START}\nold\n{lessons.END}\nAfter.\n")
    monkeypatch.setattr(notebooks, "LESSONS", tmp_path)
    monkeypatch.setattr(lessons, "LESSONS", tmp_path)
    read_lesson.cache_clear()
    return tmp_path


@pytest.fixture
def trial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lesson 99 with one exercise; its source."""
    like = EXERCISES["02-count-parameters"]
    half = type(like)(**{**vars(like), "id": "99-half", "lesson": 99, "title": "Half", "hints": ("Divide.",)})
    monkeypatch.setitem(EXERCISES, "99-half", half)
    source = folder / "src" / "99_trial.py"
    source.write_text(HEADER + BODY + EXERCISE)
    return source


def cells_of(notebook: Any, tag: str) -> list[Any]:
    return [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]


# ------------------------------------------------------------------------------------------------------ what is in git


@pytest.mark.parametrize("name", lesson_names())
def test_files_are_what_the_source_gives(name: str) -> None:
    assert lessons.problems(name) == []


@pytest.mark.parametrize("name", lesson_names())
def test_a_lesson_has_its_shape(name: str) -> None:
    lesson = read_lesson(name)
    cells = student_notebook(lesson)["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert "doctor.quick(" in code[0]
    assert len(cells_of({"cells": lesson.cells}, "first-result")) == 1
    assert cells_of({"cells": lesson.cells}, "demo")
    assert cells_of({"cells": lesson.cells}, "instructor")
    headings = [line for cell in cells for line in cell["source"].splitlines() if re.match("##? ", line)]
    assert headings[1] == "## A result first"
    assert any("Break it" in heading for heading in headings)
    assert any("xercises" in heading for heading in headings)
    assert len([e for e in EXERCISES.values() if e.lesson == lesson.number]) >= 3
    assert not re.search(r"https?://|raises-exception", "".join(code))
    nbformat.validate(nbformat.from_dict(student_notebook(lesson)))


def test_the_five_first_lessons_are_there_with_their_exercises_and_deviations() -> None:
    assert [name[:2] for name in lesson_names()][:5] == ["00", "01", "02", "03", "04"]
    first = [e for e in EXERCISES.values() if e.lesson < 5]
    assert len(first) >= 15
    named = {name for e in first for name in e.deviations}
    assert len(named) >= 30
    assert named <= DEVIATIONS.keys()


def test_links_of_the_lessons_lead_somewhere() -> None:
    for name in lesson_names():
        text = (LESSONS / "src" / f"{name}.py").read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (LESSONS / link).exists(), f"{name}: {link}"
        for following in lesson_names():
            if int(following[:2]) == int(name[:2]) + 1:
                assert f"({following}.ipynb)" in text, f"{name} does not lead to {following}"


def test_every_lesson_has_three_to_five_questions_with_answers() -> None:
    for name in lesson_names():
        questions = notebooks.read_quiz(name)
        assert 3 <= len(questions) <= 5
        title = (LESSONS / "quiz" / f"{name}.md").read_text().splitlines()[0]
        assert title == f"# Questions: {read_lesson(name).number}. {read_lesson(name).title}"
        cell = next(c for c in student_notebook(read_lesson(name))["cells"] if c["id"] == f"l{name[:2]}-quiz")
        for one in questions:
            assert one.question.endswith("?") or one.question.endswith(".")
            assert "**" in one.answer  # what matters is in bold
            assert cell["source"].index(one.question) < cell["source"].index(one.answer)


def test_the_projector_gets_what_is_shown_and_folded_what_comes_before(trial: Path) -> None:
    text = trial.read_text().replace('# %% tags=["hide-input"', '# %%\na = 3\n\n# %% tags=["hide-input"')
    trial.write_text(text + "\n# %%\nunused = 4\n")
    cells = demo_notebooks.demo_notebook(read_lesson("99_trial"))["cells"]
    code = [(c["source"], c["metadata"].get("jupyter", {})) for c in cells if c["cell_type"] == "code"]
    assert code[1] == ("a = 3", {"source_hidden": True, "outputs_hidden": True})
    assert code[2] == ("1 + 1", {"source_hidden": True})  # folded in the lesson as well
    assert len(code) == 3
    assert [c["source"] for c in cells if c["cell_type"] == "markdown"][1] == "## The idea (`condinst:eq-2`)"


@pytest.mark.parametrize("name", lesson_names())
def test_every_lesson_is_shorter_on_the_projector(name: str) -> None:
    lesson = read_lesson(name)
    cells = demo_notebooks.demo_notebook(lesson)["cells"]
    sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    shown = [cell["source"].strip() for cell in lesson.cells if notebooks.SHOWN & set(notebooks.tags(cell))]
    assert [source for source in sources if source in shown] == shown
    assert len(cells) < 0.75 * len(student_notebook(lesson)["cells"])


def test_a_question_without_an_answer_is_refused(trial: Path, folder: Path) -> None:
    (folder / "quiz").mkdir()
    (folder / "quiz" / "99_trial.md").write_text("# Questions: 99. A trial\n\n**1.** Why?\n")
    with pytest.raises(UserError, match="question 1 is not followed by a folded answer"):
        notebooks.read_quiz("99_trial")


def test_every_plan_says_what_to_leave_out_and_saves_what_it_can() -> None:
    for name in lesson_names():
        sections = notebooks.sections_of(read_lesson(name), {})
        late = [s for s in sections if s.late]
        assert len(late) >= 2, name
        for section in late:
            saved = re.search(r"\(saves (\d+)\)$", section.late)
            assert saved, section.late
            assert 0 < int(saved[1]) <= section.minutes
            assert not section.late.startswith("skip (") or int(saved[1]) == section.minutes


def test_measured_seconds_are_noted_and_shown(folder: Path, trial: Path) -> None:
    lessons.note_seconds("99_trial", lessons.Timing(9, 8, "l99-c04", 1, {"l99-c04": 8.04, "l99-c01": 0.01}))
    assert json.loads((folder / "instructor" / "seconds.json").read_text()) == {"99_trial": {"l99-c04": 8.0}}
    plan = notebooks.instructor_plan(read_lesson("99_trial"))
    assert "beforehand (8 s), or" in plan
    assert "| The idea (`condinst:eq-2`) | 9 | 8 s |" in plan


def test_a_plan_adds_up_its_sections(trial: Path) -> None:
    """Minutes of two sections, and seconds of their cells, those of two cells in one section; a third is not timed."""
    more = '\n# %% [markdown]\n# ## More\n\n# %% tags=["demo"]\n2 + 2\n\n# %%\n3 + 3\n'
    more += '\n# %% [markdown] tags=["instructor"]\n# minutes: 4\n# Say more.\n'
    more += "\n# %% [markdown]\n# ## Last\n\n# %%\n4 + 4\n"
    trial.write_text(HEADER + BODY + more + EXERCISE)
    lessons.note_seconds(
        "99_trial", lessons.Timing(9, 8, "l99-c07", 1, {"l99-c04": 2.0, "l99-c07": 6.0, "l99-c08": 3.0, "l99-c11": 1.0})
    )
    plan = notebooks.instructor_plan(read_lesson("99_trial"))
    assert "\n13 minutes without the exercises. " in plan
    assert "beforehand (12 s), or" in plan
    first = "| The idea (`condinst:eq-2`) | 9 | 2 s | say it in half the words (saves 3) |\n"
    assert f"{first}| More | 4 | 9 s |  |\n| Last |  | 1 s |  |\n\n" in plan
    assert [row.split(")")[0] for row in plan.splitlines() if row.startswith("- cell")] == [
        f"- cell [`l99-c{k:02}`](../99_trial.ipynb#cell-id=l99-c{k:02}" for k in (4, 7)
    ]


def test_questions_stand_in_front_of_the_last_cell_and_at_the_end_of_the_plan(trial: Path, folder: Path) -> None:
    (folder / "quiz").mkdir()
    answered = "<details><summary>Answer</summary>\n\nIt is {}.\n\n</details>"
    text = "# Questions\n\n" + "\n\n".join(f"**{k}.** Why {k}?\n\n{answered.format(k)}" for k in (1, 2)) + "\n"
    (folder / "quiz" / "99_trial.md").write_text(text)
    lesson = read_lesson("99_trial")
    for notebook in (student_notebook(lesson), notebooks.solution_notebook(lesson)):
        assert [cell["id"] == "l99-quiz" for cell in notebook["cells"][-3:]] == [False, True, False]
        asked = notebook["cells"][-2]["source"]
        for k in (1, 2):
            assert f"**{k}.** Why {k}?\n\n<details><summary>Answer</summary>\n\nIt is {k}.\n\n</details>" in asked
    end = "## Questions for the end\n\n**1.** Why 1?\n\nIt is 1.\n\n**2.** Why 2?\n\nIt is 2.\n"
    assert notebooks.instructor_plan(lesson).endswith(end)


def test_cell_ids_are_unique_and_stable_between_the_two_notebooks() -> None:
    for name in lesson_names():
        lesson = read_lesson(name)
        student, solution = student_notebook(lesson), notebooks.solution_notebook(lesson)
        ids = [cell["id"] for cell in student["cells"]]
        assert len(set(ids)) == len(ids)
        by_id = {cell["id"]: cell["source"] for cell in student["cells"]}
        same = [c for c in solution["cells"] if by_id.get(c["id"]) == c["source"]]
        assert len(same) >= len(solution["cells"]) - 2 * len(EXERCISES)


# ------------------------------------------------------------------------------------------------------------ machinery


def test_the_three_files_of_a_lesson(trial: Path, folder: Path) -> None:
    timing = lessons.build_lesson("99_trial")
    assert 0 < timing.first <= timing.total
    student = nbformat.read(folder / "99_trial.ipynb", as_version=4)
    solution = nbformat.read(folder / "solutions" / "99_trial.ipynb", as_version=4)
    assert student.cells[0].source.startswith("# 99. A trial")
    assert cells_of(student, "first-result")[0].outputs[0].text == "a result\n"
    assert cells_of(student, "hide-input")[0].metadata.jupyter.source_hidden
    assert [cell.source for cell in cells_of(student, "check")] == ['check("99-half", half);']
    assert [cell.source for cell in cells_of(solution, "check")] == ['assert check("99-half", half).passed']
    assert len(cells_of(student, "stub")) == 1
    assert not cells_of(student, "solution")
    assert not cells_of(solution, "stub")
    assert len(cells_of(solution, "solution")) == 1
    assert (
        "<details><summary>Solution</summary>\n\n```python\ndef half(x):\n    return x / 2" in student.cells[-1].source
    )
    assert "Divide." in cells_of(student, "exercise")[0].source
    assert not cells_of(student, "instructor")
    plan = (folder / "instructor" / "99_trial.md").read_text()
    assert "## The idea (`condinst:eq-2`) (9 min)" in plan
    assert "Say this aloud.\n\nAnd this." in plan
    assert "| The idea (`condinst:eq-2`) | 9 |  | say it in half the words (saves 3) |" in plan
    assert "cell [`l99-c04`](../99_trial.ipynb#cell-id=l99-c04): `1 + 1`" in plan
    assert DEVIATIONS[EXERCISES["02-count-parameters"].deviations[0]].line in plan
    assert lessons.problems("99_trial") == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('tags=["stub"]', 'tags=["stump"]', "unknown tag stump"),
        ('tags=["hide-input", "demo"]\n1 + 1', "\n" + "x = 1\n" * 31, "more than 30 lines"),
        ("(`condinst:eq-2`)", "(`condinst:eq-77`)", "condinst:eq-77, which no paper has"),
        ('papers: ["condinst:eq-2"]', "papers: [nature:eq-1]", "no paper has the id nature:eq-1"),
        ("#     title: A trial\n", "", "has exactly the fields"),
        ("run: 3", "walk: 3", "minutes are those to read, do and run"),
        (EXERCISE, "", "its exercises are not those of lesson 99"),
        ('check("99-half", half)', "half(3)", 'has to begin with check("99-half", '),
        ('tags=["solution"]', "", "in this order"),
    ],
)
def test_a_bad_source_is_refused_in_words(trial: Path, before: str, after: str, words: str) -> None:
    text = trial.read_text()
    assert before in text
    trial.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=re.escape(words)):
        read_lesson("99_trial")


def test_what_is_out_of_step_is_found(trial: Path, folder: Path) -> None:
    lessons.build_lesson("99_trial")
    student, plan = folder / "99_trial.ipynb", folder / "instructor" / "99_trial.md"
    whole = student.read_text()
    for change, words in [
        (("1 + 1", "1 + 2"), "is not what lessons/src/99_trial.py gives"),
        (('"id": "l99-c04"', '"id": "other"'), "is not what lessons/src/99_trial.py gives"),
        (("a result\\n", "/home/somebody/data\\n"), "cell l99-c01: an output names /home/somebody/data"),
        (('"lesson": {', '"widgets": {}, "lesson": {'), "widget"),
    ]:
        assert change[0] in whole
        student.write_text(whole.replace(*change))
        assert any(words in problem for problem in lessons.problems("99_trial")), change
    student.write_text(whole)
    plan.write_text(plan.read_text() + "more")
    assert [str(plan) in problem for problem in lessons.problems("99_trial")] == [True]
    student.unlink()
    assert any("is missing" in problem for problem in lessons.problems("99_trial"))


def one_cell(source: str) -> Any:
    cell: Any = {
        "cell_type": "code",
        "id": "one",
        "metadata": {},
        "source": source,
        "execution_count": None,
        "outputs": [],
    }
    return dict(nbformat.v4.new_notebook(cells=[cell]))


def test_a_kernel_reaches_no_other_machine_but_its_own(tmp_path: Path) -> None:
    reach = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=2)"
    with pytest.raises(CellExecutionError, match="no network in a lesson"):
        lessons.run_notebook(one_cell(reach), tmp_path)
    local = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname()).close()"
    )
    lessons.run_notebook(one_cell(local), tmp_path)


def test_a_kernel_is_of_this_environment(tmp_path: Path) -> None:
    notebook = one_cell("import sys; print(sys.prefix)")
    lessons.run_notebook(notebook, tmp_path)
    assert notebook["cells"][0]["outputs"][0]["text"].strip() == sys.prefix


def test_command_line(capsys: pytest.CaptureFixture[str], trial: Path) -> None:
    assert lessons.main(["--check"]) == 1
    assert "99_trial.ipynb is missing" in capsys.readouterr().out
    assert lessons.main(["99"]) == 0
    assert "99_trial: " in capsys.readouterr().out
    assert lessons.main(["--check"]) == 0
    readme = trial.parent.parent / "README.md"
    assert "| [99. A trial](99_trial.ipynb) | a check of the machinery | 1 min | 2 min |" in readme.read_text()
    assert readme.read_text().startswith("Before.\n")
    assert readme.read_text().endswith("\nAfter.\n")
    readme.write_text(readme.read_text().replace("A trial", "Another"))
    assert lessons.main(["--check"]) == 1
    assert "its table is not what the sources give" in capsys.readouterr().out
    with pytest.raises(UserError, match="no lesson is named 77; there are 99_trial"):
        lessons.main(["77"])


def test_bench_of_lessons(capsys: pytest.CaptureFixture[str], trial: Path) -> None:
    run_bench(Bench("lessons"))
    assert "99_trial, student" in capsys.readouterr().out
    run_bench(Bench("lessons", json=True))
    result = json.loads(capsys.readouterr().out)
    assert [row["notebook"] for row in result["rows"]] == ["student", "solution"]
    assert all(0 < row["first"] <= row["total"] for row in result["rows"])
    assert not (trial.parent.parent / "99_trial.ipynb").exists()


def test_lessons_are_where_the_checkout_is() -> None:
    assert (LESSONS / "src").is_dir()
