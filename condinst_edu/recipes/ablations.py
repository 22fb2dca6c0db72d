"""Every row of CondInst's Tables 1 to 5 as a recipe: coco-condinst-r50-1x with a few arguments of the model replaced.

    torchrun --nproc-per-node 8 -m condinst_edu.cli train condinst:table-3:absolute-features --device cuda

The arguments are those of the tables in miniature (`condinst-edu reproduce condinst:table-3`), which need no GPU.
"""

from typing import NamedTuple

from condinst_edu.engine.recipe import Recipe, override_model
from condinst_edu.errors import UserError
from condinst_edu.papers import TABLES
from condinst_edu.papers.forms import Table
from condinst_edu.papers.miniatures import MINIATURES, Row
from condinst_edu.recipes.coco import coco_condinst_r50_1x


class Ablation(NamedTuple):
    """A table, a row's position in it, and the model's arguments that make it; none make the base recipe.

    A row with arguments for evaluation alone (`row.test`) needs no training of its own.
    """

    table: Table
    position: int
    row: Row


def ablations() -> dict[str, Ablation]:
    """All rows by name, such as condinst:table-1a:depth-2."""
    return {
        f"{table_id}:{row_name(TABLES[table_id], i)}": Ablation(TABLES[table_id], i, row)
        for table_id, miniature in MINIATURES.items()
        if table_id.startswith("condinst:")
        for i, row in enumerate(miniature.rows)
    }


def ablation_recipe(name: str) -> Recipe:
    """The recipe of a row. Errors: UserError with the rows of the table, or the tables, that there are."""
    rows = ablations()
    if name not in rows:
        near = [other for other in rows if other.startswith(":".join(name.split(":")[:2]) + ":")]
        raise UserError(f"unknown row {name!r}: expected one of {', '.join(near or rows)}")
    row = rows[name].row
    return override_model(coco_condinst_r50_1x(), row.train + row.test)


def row_name(table: Table, index: int) -> str:
    """What is special about a row: its first cell (depth-2), or the columns with a tick (absolute-features)."""
    row = table.row(index)
    ticked = [name for name, cell in row.items() if cell is True]
    first = next(iter(row))
    return "-".join(ticked) if isinstance(row[first], bool) else f"{first}-{row[first]}".lower()
