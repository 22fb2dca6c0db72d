"""Builds the site: lessons with their outputs, reference, papers. `make site` runs it; the result needs no network.

What is shown is put into build/site-source, in the folders in which the repository has it, so that links between files
hold, with the pages that `pages.py` makes beside it; from there Sphinx makes build/site.
"""

import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE, SLIDES, SITE, TREES = (ROOT / "build" / f"site{kind}" for kind in ("-source", "-slides", "", "-doctrees"))
COPIED = (
    *("README.md", "LICENSE", "docs/**/*.md", "docs/**/*.png", "docs/**/*.svg", "docs/**/*.json"),
    *("lessons/*.ipynb", "lessons/README.md", "lessons/instructor/*.md", "lessons/quiz/*.md"),
)


def main() -> int:
    """Build the site and say where it is; returns the exit status."""
    try:
        import furo  # noqa: F401
        import myst_nb  # noqa: F401
        from sphinx.cmd.build import build_main
    except ImportError as error:
        print(f"site: {error.name} is missing; `make site` installs it.", file=sys.stderr)
        return 1
    sys.path.insert(0, str(HERE))
    stage()
    strict = ["-W", "--keep-going"] if "--strict" in sys.argv else []  # a link that leads nowhere is an error
    options = ["-q", *strict, "-d", str(TREES), "-c", str(HERE)]
    if status := build_main([*options, str(SOURCE), str(SITE)]):
        print("site: Sphinx complained, see above.", file=sys.stderr)
        return int(status)
    print(f"The site is ready: open {SITE / 'index.html'} in a browser.")
    return 0


def stage() -> None:
    """Make build/site-source and build/site-slides."""
    for folder in (SOURCE, SLIDES, SITE, TREES):
        shutil.rmtree(folder, ignore_errors=True)  # what an earlier call left could be of another state
    for name, text in sources():
        path = SOURCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    write_slides(SLIDES / "slides")


def sources() -> Iterator[tuple[str, bytes]]:
    """(name, text) of all that Sphinx reads: files of the repository, and pages that are made."""
    import pages

    names = [path.relative_to(ROOT).as_posix() for pattern in COPIED for path in sorted(ROOT.glob(pattern))]
    made = {"index.md": (HERE / "index.md").read_text(), "lessons/instructor.md": "# Plans for class\n"}
    made |= {f"papers/{paper}.md": text for paper, text in pages.paper_pages().items()}
    papers = list(made)[2:]
    made["papers/trace.md"] = pages.trace_page() + toctree(papers)
    others = {f"papers/{name}.md": text for name, text in pages.pages_of_modules().items()}
    made |= others
    docs = [name for name in names if name.startswith("docs/") and name.endswith(".md")]
    reproduced = [name for name in docs if name.startswith("docs/reproduced/")]
    for mark, listed in {
        "PAGES OF MODULES": list(others),
        "REPRODUCED": reproduced,
        "OTHER DOCS": [name for name in docs if name not in reproduced],
    }.items():
        made["index.md"] = made["index.md"].replace(mark, "\n".join(name.removesuffix(".md") for name in listed))
    reference = pages.api_pages()
    made |= {f"api/{name}.rst": text for name, text in reference.items()} | {"api.md": pages.api_index(reference)}
    plans = [name for name in names if name.startswith("lessons/instructor/")]
    lessons = [name for name in names if name.endswith(".ipynb")]
    quizzes = [name for name in names if name.startswith("lessons/quiz/")]
    decks = [f'- <a href="../slides/{Path(name).stem}.html">{Path(name).stem}</a>' for name in lessons]
    made["lessons/instructor.md"] += PLANS + toctree(plans, hidden=False) + SLIDES_HEADING + "\n".join(decks) + "\n"
    made["lessons/quiz.md"] = "# Questions\n\nWith folded answers, for each lesson.\n" + toctree(quizzes, hidden=False)
    for name in names:
        data = (ROOT / name).read_bytes()
        if name == "lessons/README.md":
            data += toctree(lessons).encode()
        if name in plans:
            data = DEMO_LINK.sub(rb"\1", data)
            data = CELL_LINK.sub(rb'<a href="../\1.html#\2"><code>\2</code></a>', data)
        yield name, with_cell_ids(data) if name.endswith(".ipynb") else data
    yield from ((name, text.encode()) for name, text in made.items())


CELL_LINK = re.compile(rb"\[`[\w-]+`\]\(\.\./(\w+)\.ipynb#cell-id=([\w-]+)\)")  # as JupyterLab opens it
SLIDES_HEADING = (
    "\n## Slides\n\nArrow keys turn the page, `f` fills the screen, `d` is light or dark; answers come with a key.\n\n"
)
DEMO_LINK = re.compile(rb"\[(its cells to show)\]\(\w+\.ipynb\)")  # without outputs: not on the site
PLANS = "\nOne for each lesson: minutes, the cells to show, what to say, the mistakes to expect.\n"


def toctree(names: Iterable[str], hidden: bool = True) -> str:
    """Sphinx's list of the pages below this one; names from the top folder."""
    options = [":hidden:", ""] if hidden else [":titlesonly:", ""]
    return "\n".join(["", "```{toctree}", *options, *(f"/{name.rsplit('.', 1)[0]}" for name in names), "```", ""])


def with_cell_ids(notebook: bytes) -> bytes:
    """The ids of the cells where Sphinx can see them."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        cell["metadata"]["cell_id"] = cell["id"]
    return json.dumps(content).encode()


def write_slides(folder: Path) -> None:
    """A page of slides for each lesson, and MathJax beside them."""
    import slides

    from condinst_edu.teach.notebooks import lesson_names, read_lesson, read_quiz

    folder.mkdir(parents=True)
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    shutil.copy(
        str(package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg-full.js")), folder / "mathjax.js"
    )
    for name in lesson_names():
        notebook = json.loads((ROOT / "lessons" / f"{name}.ipynb").read_text())
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        lesson = read_lesson(name)
        shown = slides.slides_of(lesson, notebook, read_quiz(name))
        (folder / f"{name}.html").write_text(slides.deck(lesson, shown))


if __name__ == "__main__":
    sys.exit(main())
