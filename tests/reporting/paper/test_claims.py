"""Verdicts on differences worked by hand."""

import math

import pytest

from workbench.evaluation.statistics import t_test
from workbench.reporting.paper.claims import FAILS, HOLDS, claim
from workbench.reporting.paper.figures.measures import interval_of

NAMES = ("plain", "ours")


def result(base: dict, other: dict, lower: bool = True):
    return claim("Ours is better", base, other, lower=lower, of="FD", names=NAMES)


def test_it_holds_where_all_agree_and_the_interval_leaves_out_zero():
    # Differences -2, -2.2, -1.8: mean -2, sd 0.2, half width 4.303 * 0.2 / sqrt(3) = 0.497.
    base, other = {0: 10.0, 1: 10.0, 2: 10.0}, {0: 8.0, 1: 7.8, 2: 8.2}
    found = result(base, other)
    assert found.verdict == HOLDS
    assert "\u22122 (95\u202f% t interval \u22122.5 to \u22121.5)" in found.confidence
    assert "better in 3 of 3 seeds" in found.confidence and "at least 0.25" in found.confidence
    assert found.p == result(other, base).p == pytest.approx(t_test([-2.0, -2.2, -1.8]))
    assert result(other, base).verdict == FAILS
    assert result(base, other, lower=False).verdict == FAILS


def test_an_inconclusive_verdict_gives_the_number_of_seeds():
    # Differences -2, -0.1, -2: mean -1.37, sd 1.10, half width 2.72: the interval has 0 in it.
    assert result({0: 10.0, 1: 10.0, 2: 10.0}, {0: 8.0, 1: 9.9, 2: 8.0}).verdict == "inconclusive with 3 seeds"
    assert result({0: 1.0}, {0: 2.0}).p is None
    alone = result({0: 10.0, 5: 1.0}, {0: 8.0, 7: 1.0})
    assert alone.verdict == "inconclusive with 1 seed" and "seed 0: ours 8, plain 10" in alone.confidence
    assert result({}, {0: 1.0}).verdict == "inconclusive: no runs"
    assert alone.sentence.startswith("Ours is better: inconclusive with 1 seed. FD, seed 0")


def test_interval_of_a_rank_correlation():
    # rho 0 of 28: tanh(1.96 / 5) = 0.373 either way.
    found = interval_of(0.0, 28)
    assert found.high == pytest.approx(math.tanh(1.959964 / 5)) and found.low == -found.high
    assert interval_of(1.0, 28).high <= 1
    with pytest.raises(ValueError, match="3 pairs"):
        interval_of(0.5, 3)
