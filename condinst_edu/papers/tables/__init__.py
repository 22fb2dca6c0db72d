"""The papers' tables as data."""

from condinst_edu.papers.forms import Table, cell_text
from condinst_edu.papers.tables import adaptis, condinst, condinst_eccv, dr1mask, slides

TABLES: dict[str, Table] = {
    table.id: table
    for tables in (condinst.TABLES, condinst_eccv.TABLES, dr1mask.TABLES, adaptis.TABLES, slides.TABLES)
    for table in tables
}


def markdown(table: Table) -> list[str]:
    """The lines of a table in Markdown, caption first, notes last."""
    heads = [f"{column.name} ({column.unit})" if column.unit else column.name for column in table.columns]
    rows = [heads, ["---"] * len(heads), *([cell_text(cell) for cell in row] for row in table.rows)]
    lines = [table.caption, "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += ["", table.notes] if table.notes else []
    return [line.replace("*", r"\*") for line in lines]  # a star is a footnote's, no emphasis


def page() -> str:
    """All tables as a page in Markdown."""
    lines = ["# The papers' tables", "", "Figures as printed, captions in our words."]
    for table in TABLES.values():
        lines += ["", f"## {table.id}", "", *markdown(table)]
    return "\n".join(lines) + "\n"
