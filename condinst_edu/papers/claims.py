"""What a paper's table says about two of its rows, and whether the seeds of a miniature say so too.

A claim is about an order or about no difference, never about a figure. Three seeds of each row decide most of them:
if the rows were alike, all seeds of the one would lie above all seeds of the other once in 20 times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Literal

from condinst_edu.papers.forms import Table

Verdict = Literal["shows", "does not show", "within the spread", "too few seeds"]

RARE = 1 / 20  # how often chance alone may give what we call a difference


@dataclass(frozen=True)
class Claim:
    """Two rows of a table, by their position, and how they stand to each other in the paper.

    order: ">" the first is ahead of the second, "=" they are alike; column: the paper's; ours: what stands for it in
    the miniature, where that is another score.
    """

    says: str
    """In our words."""
    first: int
    second: int
    order: Literal[">", "="] = ">"
    column: str = "AP"
    ours: str | None = None
    because: str = ""
    """Why the stored miniature does not show it, as far as we know."""

    @property
    def score(self) -> str:
        """Name of the miniature's score."""
        return self.ours or self.column


def paper_gap(claim: Claim, table: Table) -> float | None:
    """By how much the first row is ahead in the paper; None where the table has no such figures."""
    if max(claim.first, claim.second) >= len(table.rows) or claim.column not in table.names:
        return None
    first, second = (table.row(i)[claim.column] for i in (claim.first, claim.second))
    if not isinstance(first, int | float) or not isinstance(second, int | float):
        return None
    return first - second


def judge(claim: Claim, first: Sequence[float], second: Sequence[float]) -> Verdict:
    """Whether the figures of the rows' seeds say the same.

    A row is ahead where chance would deal so large a lead less than once in 20 times (`chance`). "within the spread":
    neither row is. Rows that are said to be alike are shown so where neither is ahead, which is weak evidence.
    """
    if chance([1.0] * len(first), [0.0] * len(second)) > RARE:  # not even the clearest lead would count
        return "too few seeds"
    ahead, behind = chance(first, second) <= RARE, chance(second, first) <= RARE
    if claim.order == "=":
        return "does not show" if ahead or behind else "shows"
    return "shows" if ahead else "does not show" if behind else "within the spread"


def chance(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of all ways to deal the figures to two rows of these lengths that put the first as far ahead, or farther.

    An exact permutation test of the difference of means, one-sided: 1/20 at the least for 3 seeds each.
    """
    figures = [*first, *second]
    lead = sum(first) - 1e-9 * (1 + sum(map(abs, figures)))  # as far ahead: the same sum, but for rounding
    deals = [sum(deal) for deal in combinations(figures, len(first))]
    return sum(total >= lead for total in deals) / len(deals)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds, 0 for one seed."""
    return stdev(values) if len(values) > 1 else 0.0


def spread_text(values: Sequence[float]) -> str:
    """The mean in one decimal, with the standard deviation where there are several."""
    return f"{mean(values):.1f} ± {spread(values):.1f}" if len(values) > 1 else f"{mean(values):.1f}"
