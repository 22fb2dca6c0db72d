"""The page of all tables that were run in miniature: figures and plots beside the paper's, and what its claims became.

    python -m condinst_edu.papers.reproduced docs/reproduced      writes README.md and a plot for each table

`condinst-edu reproduce PAPER:TABLE --publish` stores the results that it takes.
"""

import json
import sys
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
from matplotlib.figure import Figure

from condinst_edu.errors import UserError
from condinst_edu.files import whole_file, writable_folder
from condinst_edu.papers.claims import Claim, Verdict, judge, paper_gap, spread_text
from condinst_edu.papers.forms import anchor, cell_text
from condinst_edu.papers.miniatures import MINIATURES, printed
from condinst_edu.papers.reproduce import RESULTS, columns, file_name
from condinst_edu.papers.tables import TABLES

Result = dict[str, Any]

INTRODUCTION = """# The papers' tables in miniature

Each row is a tiny model, trained for seconds or minutes on drawn images and scored on 200 others, with several seeds.
Such a run can tell which way a figure goes from row to row, not how large it is: the paper's figures, from COCO or
Cityscapes and from days of GPUs, stand beside ours for comparison of their order only.

Models of shapes start from the shipped tiny FCOS, as the papers' start with a backbone from ImageNet: boxes are found
from the beginning, and what is compared is masks. SOLO, which has another head, takes its backbone and pyramid.

**How a claim is judged.** One row is ahead of another where, of all ways to deal the two rows' figures to them, at most
1 in 20 gives as large a lead. With three seeds each that asks that all seeds of the one lie above all of the other.
A claim *shows* where the row that the paper puts ahead is ahead here; it *does not show* where the order is the
reverse; it is *within the spread* where neither is ahead. A claim that two rows are alike shows where neither is
ahead, which is weak evidence: three seeds miss small differences. And as each verdict errs in 1 of 20 cases, a few of
those below will be wrong.
"""


def stored(name: str) -> Result | None:
    """The result of a table that the repository holds, or None. Errors: UserError for a file that is none."""
    path = RESULTS / file_name(name)
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no stored result: {error}") from None


def all_stored() -> dict[str, Result]:
    """The stored results by table, in the order of `MINIATURES`."""
    found = {name: stored(name) for name in MINIATURES}
    return {name: result for name, result in found.items() if result is not None}


def verdicts(result: Result) -> list[tuple[Claim, Verdict]]:
    """The claims on a table with what became of them."""
    claims = MINIATURES[result["table"]].claims
    return [
        (claim, judge(claim, figures(result, claim.first, claim), figures(result, claim.second, claim)))
        for claim in claims
    ]


def figures(result: Result, row: int, claim: Claim) -> list[float]:
    """What the seeds of a row have of a claim's score; none where the images have nothing for it."""
    return list(result["rows"][row]["scores"].get(claim.score, []))


# --------------------------------------------------------------------------------------------------------------- page


def page(folder: Path) -> str:
    """The page as Markdown; a plot for each table is written to `folder`, which the page names them relative to."""
    writable_folder(folder)
    results = all_stored()
    parts = [INTRODUCTION, overview(results), missed(results)]
    for name, result in results.items():
        picture = f"{file_name(name).removesuffix('.json')}.svg"
        plot(result, folder / picture)
        parts.append(section(result, picture))
    return "\n".join(parts)


def overview(results: dict[str, Result]) -> str:
    """A line for each table: how many of its claims show."""
    heads = ["table", "seeds", "claims", "show", "do not show", "within the spread", "too few seeds"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, result in results.items():
        said = [verdict for _, verdict in verdicts(result)]
        counts = [str(said.count(verdict)) for verdict in get_args(Verdict)]
        lines.append(f"| [{name}](#{anchor(name)}) | {result['seeds']} | {len(said)} | {' | '.join(counts)} |")
    return "\n".join([*lines, ""])


def missed(results: dict[str, Result]) -> str:
    """All claims that do not show, with the reason as far as we know it."""
    lines = ["## What does not show", ""]
    for name, result in results.items():
        for claim, verdict in verdicts(result):
            if verdict in ("does not show", "within the spread"):
                because = claim.because or MINIATURES[name].because
                lines.append(f"- `{name}`: {claim.says} **{verdict.capitalize()}.** {because}".rstrip())
    return "\n".join([*lines, ""])


def section(result: Result, picture: str) -> str:
    """One table: plot, figures, claims, card."""
    name = result["table"]
    about = TABLES[name].caption if name in TABLES else "From the tutorial slides."
    parts = [f"## {name}", "", f"{about} {MINIATURES[name].note}".strip(), ""]
    parts += [f"![{name}: the paper's figures and each seed of ours]({picture})", "", figures_table(result), ""]
    parts += [claims_table(result), ""] if MINIATURES[name].claims else []
    parts += [card_text(result), ""]
    return "\n".join(parts)


def figures_table(result: Result) -> str:
    """The rows with the paper's figures and ours, mean and standard deviation."""
    name = result["table"]
    names = columns(name, result)
    theirs = [key for key in names if printed(name, 0).get(key) is not None]
    ours = [key for key in names if key in result["rows"][0]["scores"]]
    lines = ["| | " + " | ".join([*(f"paper: {key}" for key in theirs), *(f"ours: {key}" for key in ours)]) + " |"]
    lines.append("|---" * (1 + len(theirs) + len(ours)) + "|")
    for i, row in enumerate(result["rows"]):
        cells = [cell_text(printed(name, i).get(key)) for key in theirs]
        cells += [spread_text(row["scores"][key]) for key in ours]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_table(result: Result) -> str:
    """The claims, by how much the first row is ahead in the paper and here, and the verdict."""
    lines = ["| the paper | score | its difference | ours | verdict |", "|---|---|---|---|---|"]
    table = TABLES.get(result["table"])
    for claim, verdict in verdicts(result):
        gap = None if table is None else paper_gap(claim, table)
        first, second = figures(result, claim.first, claim), figures(result, claim.second, claim)
        ours = f"{sum(first) / len(first) - sum(second) / len(second):+.1f}" if first and second else "-"
        score = claim.column if claim.ours is None else f"{claim.column}, ours {claim.ours}"
        theirs = "-" if gap is None else f"{gap:+.1f}"
        lines.append(f"| {claim.says} | {score} | {theirs} | {ours} | **{verdict}** |")
    return "\n".join(lines)


def card_text(result: Result) -> str:
    """How the figures came about, in one sentence."""
    threads, minutes = ", ".join(map(str, result["threads"])), result["seconds"] / 60
    seeds, models = counted(result["seeds"], "seed"), counted(result["models"], "model")
    return (
        f"`{result['command']}`: {seeds}, {result['iterations']} iterations of {result['batch']} "
        f"images ({result['data']}), start: {result['start']}; {models} in {minutes:.0f} minutes on "
        f"{result['device']}, threads: {threads}; torch {', '.join(result['torch'])}; {result['date']}."
    )


def counted(number: int, word: str) -> str:
    """A number and its noun: "1 seed", "3 seeds"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


# --------------------------------------------------------------------------------------------------------------- plot


def plot(result: Result, path: Path) -> None:
    """Each row's seeds as points, beside the paper's figure on an axis of its own, as SVG."""
    name, rows = result["table"], result["rows"]
    claims = MINIATURES[name].claims
    theirs = claims[0].column if claims else columns(name, result)[0]
    ours = claims[0].score if claims else theirs
    paper = [printed(name, i).get(theirs) for i in range(len(rows))]
    panels = 2 if any(value is not None for value in paper) else 1
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=(8, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        if panels == 2:
            places = [i for i, value in enumerate(paper) if value is not None]
            axes[0].plot([paper[i] for i in places], places, "D", color="0.35")
            axes[0].set_xlabel(f"paper: {theirs}")
        for i, row in enumerate(rows):
            values = row["scores"][ours]
            axes[-1].plot([sum(values) / len(values)], [i], "|", color="tab:blue", markersize=16)
            axes[-1].plot(values, [i] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
        axes[-1].set_xlabel(f"ours: {ours} (points: seeds, line: mean)")
        axes[0].set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        for axis in axes:
            axis.margins(x=0.12)
            axis.grid(axis="x", color="0.9")
            axis.set_axisbelow(True)
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def write_page(folder: Path) -> None:
    """The page as `folder`/README.md with its plots; plots of tables that are gone are deleted."""
    text = page(folder)
    for path in folder.glob("*.svg"):
        if path.name not in text:
            path.unlink()
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
