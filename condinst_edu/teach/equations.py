"""An equation of a paper beside the code that computes it: rendered in a notebook, plain text elsewhere."""

from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from condinst_edu.papers import Item, item
from condinst_edu.papers.trace import place, section, source


@dataclass(frozen=True)
class Equation:
    """What `show_equation` returns: a notebook draws it, `print` writes it.

    entry: of the paper's equation or rule; symbols: the code to show, as dotted names.
    """

    entry: Item
    symbols: tuple[str, ...]

    def __str__(self) -> str:
        lines = [self.title, self.entry.formula]
        lines += [f"{text}\n{code}" for text, code in self.sources()]
        return "\n\n".join(filter(None, lines))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        formula = f"$$\n{self.entry.formula}\n$$" if self.entry.formula else ""
        lines = [f"**{self.title}**", formula]
        lines += [f"`{text}`\n\n```python\n{code}\n```" for text, code in self.sources()]
        return {"text/plain": str(self), "text/markdown": "\n\n".join(filter(None, lines))}

    @property
    def title(self) -> str:
        """The id, what it is, where it stands."""
        return f"{self.entry.id}: {self.entry.title} ({section(self.entry)})"

    def sources(self) -> list[tuple[str, str]]:
        """(name and place, text) of each symbol; methods begin at the left edge."""
        return [(f"{symbol}  {place(symbol)}", dedent(source(symbol)).rstrip()) for symbol in self.symbols]


def show_equation(name: str, *parts: str) -> Equation:
    """An equation or rule by its id, "condinst:eq-2", beside the library's own code for it.

    parts: which of its functions, classes or naive forms, by their last names, such as "dice_loss"; by default the
    first. Errors: UserError for an id that is none; ValueError for a part that the id does not have.
    """
    entry = item(name)
    known = {symbol.split(".")[-1]: symbol for symbol in (*entry.naive, *entry.symbols)}
    for part in parts:
        if part not in known:
            raise ValueError(f"{entry.id} has no {part!r}: choose from {', '.join(known)}")
    return Equation(entry, tuple(known[part] for part in parts) or entry.symbols[:1])
