"""Slides of a lesson, from its notebook as it is stored: one HTML file that needs only MathJax beside it.

What is shown follows from the lesson: for each section the sentences that introduce its terms, the displayed formulas,
and the pictures and printed lines of the cells that are tagged for class (`first-result`, `demo`, `play`).
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from condinst_edu.teach.notebooks import SHOWN, Lesson, Question, tags

NO_SLIDES = ("Exercises", "Questions", "What the paper says and what the code does")
HERE = Path(__file__).resolve().parent
MAX_LINES, MANY_LINES, MAX_POINTS = 14, 5, 3


@dataclass
class Slide:
    """A heading, points (Markdown), formulas (LaTeX), printed lines, a picture (base64 PNG, "" for none)."""

    title: str
    points: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    printed: str = ""
    picture: str = ""
    hidden: str = ""
    """Markdown that comes with the next key: the answer to a question."""


def slides_of(lesson: Lesson, notebook: dict[str, Any], questions: list[Question]) -> list[Slide]:
    """The lesson's slides in order: title, sections, questions with their answers, the last three lines."""
    slides = [
        Slide(f"{lesson.number}. {lesson.title}", [sentence[:1].upper() + sentence[1:] for sentence in lesson.gives])
    ]
    sections = list(by_section(notebook["cells"]))
    for heading, cells in sections[:-1]:
        if heading not in NO_SLIDES:
            slides += section_slides(heading, cells)
    slides += [Slide("A question", [question], hidden=answer) for question, answer in questions]
    last, cells = sections[-1]
    return [*slides, Slide(last, list_items(cells[0]["source"]))]


def by_section(cells: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(heading, cells) of each part of a notebook under a heading of level 2."""
    heading = ""
    group: list[dict[str, Any]] = []
    for cell in cells:
        if found := re.match(r"## +(.+)", cell["source"]):
            if heading:
                yield heading, group
            heading, group = found[1], []
        if heading:
            group.append(cell)
    yield heading, group


def section_slides(heading: str, cells: list[dict[str, Any]]) -> list[Slide]:
    """One slide for the words and formulas, with the first picture; one for every further picture."""
    texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
    formulas = [f for text in texts for f in re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)]
    slides = [Slide(heading, points(texts), formulas)]
    code = [cell for cell in cells if cell["cell_type"] == "code" and any(outputs(cell))]
    for cell in [cell for cell in code if SHOWN & set(tags(cell))] or code[:2]:
        printed, pictures = outputs(cell)
        if printed.count("\n") > MANY_LINES and pictures:
            slides.append(Slide(heading, [], [], printed))
            printed = ""
        for k, picture in enumerate(pictures or [""]):
            slides.append(Slide(heading, [], [], printed if k == 0 else "", picture))
    words = sum(map(len, slides[0].points))
    if len(slides) > 1 and len(slides[0].formulas) < 2 and words < (250 if slides[1].picture else 600):
        first = slides.pop(1)  # there is room for the first picture below the words
        slides[0].printed, slides[0].picture = first.printed, first.picture
    return slides


def points(texts: list[str]) -> list[str]:
    """How a section begins, and the sentences in it that introduce a term in bold."""
    found: list[str] = []
    for text in texts:
        text = re.sub(
            r"\$\$.+?\$\$|^\|.*$|^#.*$|<details>.*", "", text, flags=re.DOTALL if "<details>" in text else re.M
        )
        text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d\.) )", text):
            whole = re.sub(r"^\s*(?:[-*]|\d\.)\s+", "", " ".join(paragraph.split()))
            sentences = [s for s in re.split(r"(?<=[.?!])\s+(?=[A-Z*`$])", whole) if s]
            found += [" ".join(sentences[:2])] if not found and sentences else [s for s in sentences if "**" in s]
    return [sentence for sentence in found if len(sentence) < 280][:MAX_POINTS]


def list_items(text: str) -> list[str]:
    """The items of a Markdown list."""
    items = re.findall(r"^- (.+?)(?=\n- |\n\s*\n|\Z)", text, re.DOTALL | re.MULTILINE)
    return [" ".join(item.split()) for item in items]


def outputs(cell: dict[str, Any]) -> tuple[str, list[str]]:
    """Printed lines of a cell, if they are few, and its pictures."""
    lines = "".join("".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream").splitlines()
    printed = "\n".join(line for line in lines if not line.startswith("✓"))  # what agrees, nobody need read
    pictures = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
    return ("" if printed.count("\n") > MAX_LINES else printed.rstrip()), [
        "".join(p).replace("\n", "") for p in pictures
    ]


# -------------------------------------------------------------------------------------------------------------- as HTML


def deck(lesson: Lesson, slides: list[Slide]) -> str:
    """All slides of a lesson as one page."""
    shown = "\n".join(as_html(slide) for slide in slides)
    return (
        (HERE / "deck.html")
        .read_text()
        .replace("TITLE", html.escape(f"{lesson.number}. {lesson.title}"))
        .replace("SLIDES", shown)
    )


def as_html(slide: Slide) -> str:
    parts = [f"<h1>{html.escape(slide.title)}</h1>"]
    if slide.points:
        parts.append("<ul>" + "".join(f"<li>{inline(point)}</li>" for point in slide.points) + "</ul>")
    parts += [f"<div class='formula'>$${html.escape(formula)}$$</div>" for formula in slide.formulas]
    if slide.printed:
        parts.append(f"<pre>{html.escape(slide.printed)}</pre>")
    if slide.picture:
        parts.append(f"<img alt='{html.escape(slide.title)}' src='data:image/png;base64,{slide.picture}'>")
    if slide.hidden:
        parts.append(f"<div class='answer' hidden>{block(slide.hidden)}</div>")
    return f"<section>{''.join(parts)}</section>"


def block(text: str) -> str:
    """Markdown as HTML; formulas stay for MathJax."""
    from nbconvert.filters.markdown import markdown2html

    return str(markdown2html(text))


def inline(text: str) -> str:
    """One paragraph's Markdown as HTML; links lose their target, which is a notebook."""
    made = block(re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text))
    return re.sub(r"^<p>|</p>\s*$", "", made.strip())
