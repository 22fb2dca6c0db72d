"""Every equation, rule and table of the papers that the project answers for, and the code that does it.

An id is `paper:item`, as docstrings cite it (`Source: condinst:eq-2`); the papers are condinst (journal version),
condinst-eccv (what the conference version has otherwise), dr1mask, adaptis and slides.
"""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from condinst_edu.errors import UserError
from condinst_edu.papers import items_adaptis, items_condinst, items_condinst_eccv, items_dr1mask, items_slides
from condinst_edu.papers.forms import Item

ITEMS: dict[str, Item] = {
    item.id: item
    for items in (
        items_condinst.ITEMS,
        items_condinst_eccv.ITEMS,
        items_dr1mask.ITEMS,
        items_adaptis.ITEMS,
        items_slides.ITEMS,
    )
    for item in items
}


def key_of(name: str) -> str:
    """An id as it is listed: a space works for the colon, capitals for small letters."""
    return ":".join(name.lower().replace(":", " ").split())


def item(name: str) -> Item:
    """The entry of an id; a space works for the colon. Errors: UserError with the ids that come close."""
    key = key_of(name)
    if key in ITEMS:
        return ITEMS[key]
    if close := difflib.get_close_matches(key, ITEMS, n=4):
        raise UserError(f"there is no {name!r} in the papers: did you mean {' or '.join(close)}?")
    raise UserError(
        f"there is no {name!r} in the papers: an id looks like {next(iter(ITEMS))} (all: condinst-edu trace)"
    )


def resolve(symbol: str) -> Any:
    """The object that a dotted name means. Errors: ImportError or AttributeError where it is gone or renamed."""
    parts = symbol.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # something that the module itself needs is missing
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no module of {symbol!r} can be imported")


def lost_symbols(items: Iterable[Item]) -> list[str]:
    """Mapped symbols and naive forms that cannot be imported, as "id -> symbol"."""
    lost = []
    for entry in items:
        for symbol in (*entry.symbols, *entry.naive):
            try:
                resolve(symbol)
            except (ImportError, AttributeError):
                lost.append(f"{entry.id} -> {symbol}")
    return lost
