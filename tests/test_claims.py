"""When a claim of a paper shows in a miniature: counted by hand, against scipy-free brute force, and at its limits."""

import itertools
import random

import pytest

from condinst_edu.papers import TABLES
from condinst_edu.papers.claims import Claim, chance, judge, paper_gap, spread, spread_text
from condinst_edu.papers.miniatures import MINIATURES

AHEAD, ALIKE = Claim("first is ahead", 0, 1), Claim("alike", 0, 1, "=")


def test_three_seeds_decide_where_they_do_not_overlap() -> None:
    """Rows apart show, reversed do not; one seed that lies among the others is enough to leave it open."""
    high, low, between = [3.0, 3.1, 3.2], [1.0, 2.0, 2.9], [1.0, 2.0, 3.05]
    assert judge(AHEAD, high, low) == "shows"
    assert judge(AHEAD, low, high) == "does not show"
    assert judge(AHEAD, high, between) == "within the spread"
    assert judge(AHEAD, between, high) == "within the spread"
    assert [judge(ALIKE, *rows) for rows in ((high, low), (low, high))] == ["does not show"] * 2
    assert judge(ALIKE, high, between) == "shows"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_fewer_seeds_decide_nothing(seeds: int) -> None:
    for claim in (AHEAD, ALIKE):
        assert judge(claim, [9.0] * seeds, [1.0] * seeds) == "too few seeds"


def test_equal_figures_are_no_lead() -> None:
    """Also where their sums differ by rounding alone."""
    assert chance([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]) > 0.5
    assert judge(AHEAD, [0.7] * 3, [0.7] * 3) == "within the spread"
    assert judge(ALIKE, [0.1 + 0.2] * 3, [0.3] * 3) == "shows"


@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 3), (4, 4), (2, 5)])
def test_chance_is_that_of_all_orders(n: int, m: int) -> None:
    """Against dealing out in every order of the figures, which knows nothing of combinations."""
    figures = [random.Random(seed).gauss(0, 1) for seed in range(n + m)]
    lead = sum(figures[:n]) / n - sum(figures[n:]) / m
    orders = list(itertools.permutations(figures))
    as_far = sum(sum(order[:n]) / n - sum(order[n:]) / m >= lead - 1e-9 for order in orders)
    assert chance(figures[:n], figures[n:]) == pytest.approx(as_far / len(orders))


def test_rows_that_are_alike_seldom_differ() -> None:
    """Of two rows of the same distribution, one is called ahead in 1 of 20 cases for three seeds."""
    draw = random.Random(0)
    verdicts = [judge(AHEAD, *([draw.gauss(0, 1) for _ in range(3)] for _ in range(2))) for _ in range(4000)]
    assert verdicts.count("shows") / 4000 == pytest.approx(1 / 20, abs=0.012)
    assert verdicts.count("does not show") / 4000 == pytest.approx(1 / 20, abs=0.012)


def test_spread() -> None:
    assert spread([2.0]) == 0
    assert spread([1.0, 2.0, 3.0]) == 1
    assert [spread_text([2.04]), spread_text([1.0, 2.0, 3.0])] == ["2.0", "2.0 ± 1.0"]


def test_claims_are_what_the_papers_tables_print() -> None:
    """Each order is that of the printed figures; rows called alike are within a point of each other."""
    for name, miniature in MINIATURES.items():
        for claim in miniature.claims:
            assert claim.first != claim.second
            assert max(claim.first, claim.second) < len(miniature.rows)
            gap = paper_gap(claim, TABLES[name]) if name in TABLES else None
            assert (gap is None) == name.startswith("slides:")
            if gap is not None:
                assert gap > 0 if claim.order == ">" else abs(gap) < 1, (name, claim.says)
