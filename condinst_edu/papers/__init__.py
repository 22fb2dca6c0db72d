"""The papers behind the code: what stands where, their tables as data, their errata, and tables run in miniature.

from condinst_edu.papers import item, table
item("condinst:eq-2").symbols          # the code of Eq. 2
item("condinst:eq-2").naive            # loop forms of it, written from the paper: papers.naive_condinst and its like
table("condinst:table-3").rows         # the printed figures
"""

from condinst_edu.errors import UserError
from condinst_edu.papers.errata import ERRATA, Erratum
from condinst_edu.papers.forms import Item, Table
from condinst_edu.papers.items import ITEMS, item
from condinst_edu.papers.tables import TABLES

__all__ = ["ERRATA", "ITEMS", "TABLES", "Erratum", "Item", "Table", "item", "table"]


def table(name: str) -> Table:
    """The table of an id; a space works for the colon. Errors: UserError where there is none of that id."""
    entry = item(name)
    if entry.id not in TABLES:
        raise UserError(f"{entry.id} is no table with figures: {entry.title}")
    return TABLES[entry.id]
