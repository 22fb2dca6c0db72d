"""The papers' symbols: what each means, its shape, what it is called in our code, and where the papers disagree.

The symbols stand in notation.tsv. `code` names a function, class or attribute as it is below `condinst_edu`, and
"name(argument)" is an argument of it.
"""

from pathlib import Path
from typing import NamedTuple

from condinst_edu.papers.forms import PAPERS


class Symbol(NamedTuple):
    """A symbol of one paper; items: ids that it stands in, where there is one."""

    letter: str
    """What a reader looks for, without index and accent: R, theta."""
    latex: str
    paper: str
    meaning: str
    shape: str
    code: str
    items: tuple[str, ...]


def read_symbols(path: Path) -> tuple[Symbol, ...]:
    """The rows of a file of symbols, tabs between the columns, the fields of `Symbol` in the first line."""
    _, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return tuple(
        Symbol(letter, latex, paper, meaning, shape, code, tuple(items.split()))
        for letter, latex, paper, meaning, shape, code, items in rows
    )


SYMBOLS = read_symbols(Path(__file__).with_name("notation.tsv"))

SAME_THING = {
    "what is predicted for one instance alone": {
        "condinst": r"$\theta_{x,y}$",
        "dr1mask": r"$e^{(i)}$",
        "adaptis": 'the "characteristic" vector',
    },
    "the maps that all instances share": {
        "condinst": "$F_{bottom}$",
        "condinst-eccv": "$F_{mask}$",
        "dr1mask": "$F$",
        "adaptis": "$Q$",
    },
    "how many channels these have": {
        "condinst": "$C_{bottom}$",
        "condinst-eccv": "$C_{mask}$",
        "dr1mask": "$D$",
    },
    "what of them an instance's network reads": {
        "condinst": r"$\tilde F_{x,y}$, the whole map",
        "dr1mask": "$R^{(i)}$, a crop",
        "adaptis": "$Q$ with Relative CoordConv, the whole map",
    },
    "a predicted mask before it is cut": {
        "condinst": r"$\mathrm{MaskHead}(\tilde F_{x,y}; \theta_{x,y})$",
        "adaptis": "$C_i$",
    },
}
"""One thing under several names: {what it is: {paper: how it calls it}}."""

OURS = {
    "B": "images of a batch",
    "C": "channels",
    "H, W": "height and width of a map",
    "K": "classes; in BlendMask and DR1Mask bases",
    "L": "locations of all levels together",
    "M": "true objects of an image",
    "N": "instances or points",
}
"""Letters that our shapes have in every module, unless its legend says otherwise."""


def symbols_of(name: str) -> list[Symbol]:
    """The symbols that stand in an equation or rule."""
    return [symbol for symbol in SYMBOLS if name in symbol.items]


def disagreements() -> dict[str, list[Symbol]]:
    """Letters that papers, or one paper in two places, take for different things."""
    letters: dict[str, list[Symbol]] = {}
    for symbol in SYMBOLS:
        letters.setdefault(symbol.letter, []).append(symbol)
    return {letter: symbols for letter, symbols in letters.items() if len({s.meaning for s in symbols}) > 1}


def page() -> str:
    """The symbols as a page in Markdown."""

    def row(*cells: str) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [
        "# Notation",
        "",
        "The papers' symbols, and what they are called in our code: `name(argument)` is an argument.",
    ]
    for paper, title in PAPERS.items():
        lines += ["", f"## {title}", ""]
        for s in (s for s in SYMBOLS if s.paper == paper):
            where = ", ".join(f"`{id}`" for id in s.items)
            parts = (f"${s.latex}$: {s.meaning}", s.shape, f"`{s.code}`", where)
            lines.append(f"- {'; '.join(filter(None, parts))}")
    lines += ["", "## One letter, several things", "", row("letter", "what the papers mean by it"), row("---", "---")]
    for letter, symbols in disagreements().items():
        meanings = "; ".join(f"{s.paper}: ${s.latex}$, {s.meaning}" for s in symbols)
        lines.append(row(letter, meanings))
    lines += ["", "## One thing, several letters", "", row("what it is", "how the papers call it"), row("---", "---")]
    for thing, names in SAME_THING.items():
        lines.append(row(thing, "; ".join(f"{paper}: {name}" for paper, name in names.items())))
    lines += ["", "## Letters of our shapes", "", row("letter", "what it counts"), row("---", "---")]
    lines += [row(letter, meaning) for letter, meaning in OURS.items()]
    return "\n".join(lines) + "\n"
