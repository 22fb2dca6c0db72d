"""The papers' tables as data."""

from condinst_edu.papers.forms import Table
from condinst_edu.papers.tables import adaptis, condinst, condinst_eccv, dr1mask

TABLES: dict[str, Table] = {
    table.id: table
    for tables in (condinst.TABLES, condinst_eccv.TABLES, dr1mask.TABLES, adaptis.TABLES)
    for table in tables
}
