"""What the entries of this package look like: an item of a paper, a table of a paper."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Cell = str | int | float | bool | None
"""A number or word as printed; True or False for a tick; None where the paper has nothing or a dash."""


def cell_text(cell: Cell) -> str:
    """A cell for the screen: a tick for True, nothing for False, a dash for what the paper leaves out."""
    if isinstance(cell, bool):
        return "✓" if cell else ""
    return "-" if cell is None else str(cell)


PAPERS = {
    "condinst": "CondInst, the journal version",
    "condinst-eccv": "CondInst, the conference version",
    "dr1mask": "DR1Mask",
    "adaptis": "AdaptIS",
    "slides": "Tutorial slides of the FCOS family",
}

Status = Literal["equal", "tested", "miniature", "recipe", "figures", "we differ"]

STATUS: dict[Status, str] = {
    "equal": "tests hold the code equal to a loop form written from the paper",
    "tested": "there is no loop form of it; tests hold it by its steps, its sizes or its settings",
    "miniature": "a table that is run at small scale; its full scale is recipes, not run here",
    "recipe": "a table at full scale only: its rows are recipes, not run here",
    "figures": "a table whose figures are here as data, and nothing else",
    "we differ": "we do not do what is printed",
}

Part = Literal["code", "naive", "tests", "lesson"]
PARTS: tuple[Part, ...] = get_args(Part)


def anchor(name: str) -> str:
    """What Markdown's readers call the heading of an id: condinst:eq-2 -> condinsteq-2."""
    return re.sub(r"[^\w-]", "", name)


@dataclass(frozen=True)
class Item:
    """Something in a paper that the project answers for: an equation, a rule, a part of a network, a table."""

    id: str
    """`paper:item`, as docstrings cite it."""
    title: str
    section: str
    """Where it stands in the paper."""
    formula: str = ""
    """LaTeX, where it is an equation."""
    symbols: tuple[str, ...] = ()
    """Dotted names of the code that does it."""
    naive: tuple[str, ...] = ()
    """Dotted names of the loop forms written straight from the paper."""
    tests: tuple[str, ...] = ()
    """Tests that hold it, as tests/test_mask_head.py::test_num_parameters."""
    status: Status = "tested"
    lacks: Mapping[Part, str] = field(default_factory=dict)
    """Why it has no code, no naive form, no test or no lesson: one reason for each part that is missing."""

    @property
    def paper(self) -> str:
        """The paper's short name: what stands before the colon."""
        return self.id.split(":")[0]

    @property
    def is_table(self) -> bool:
        """Whether it is a table: of tables no naive form is asked."""
        return ":table-" in self.id


class Column(NamedTuple):
    """A column's name and the unit of its numbers, "" where they have none."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper: numbers exactly as printed, caption and notes in our words."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    def row(self, index: int) -> Mapping[str, Cell]:
        """One row as {column: cell}."""
        return dict(zip(self.names, self.rows[index], strict=True))

    def find(self, **where: Cell) -> list[Mapping[str, Cell]]:
        """Rows whose cells have these values."""
        rows = (self.row(i) for i in range(len(self.rows)))
        return [row for row in rows if all(row[name] == value for name, value in where.items())]

    def value(self, column: str, **where: Cell) -> float:
        """The number in a column of the one row whose cells have these values."""
        (row,) = self.find(**where)
        number = row[column]
        if not isinstance(number, int | float):
            raise ValueError(f"{self.id}: {column} of {where} is no number but {number!r}")
        return number


# Columns that many tables share; `engine.evaluate` names its scores in the same way.
MASK_AP = tuple(Column(name, "%") for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"))
MASK_AR = tuple(Column(name, "%") for name in ("AR1", "AR10", "AR100"))
PQ = tuple(Column(name, "%") for name in ("PQ", "PQ thing", "PQ stuff"))
