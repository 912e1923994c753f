"""A change counts as settled only where its interval leaves out zero."""

import pytest
from synthetic import rate

from es2.report.change import Change
from es2.results.paired import paired_difference
from es2.results.rates import Rate


def test_interval_matches_the_worked_example_of_newcombe():
    # Newcombe (1998), table II(a): 56/70 against 48/80, method 10.
    change = Change(Rate(0.6, 0.490381, 0.700336, 80), Rate(0.8, 0.691816, 0.876938, 70))
    assert change.interval == pytest.approx((5.24, 33.39), abs=0.02)
    assert change.clear


def test_interval_of_the_reverse_change_is_mirrored():
    a, b = Rate(**rate(0.2)), Rate(**rate(0.7))
    low, high = Change(a, b).interval
    assert Change(b, a).interval == pytest.approx((-high, -low))


def test_change_that_may_be_nothing_is_not_clear():
    assert not Change(Rate(**rate(0.5)), Rate(**rate(0.6))).clear


def test_a_paired_difference_replaces_the_unpaired_interval():
    before, after = [0] * 10 + [1] * 90, [1] * 100
    paired = paired_difference(before, after)
    change = Change(Rate(**rate(0.9)), Rate(**rate(1.0)), paired)
    assert change.interval == (100 * paired.low, 100 * paired.high)
    assert change.clear


def test_a_paired_test_that_objects_leaves_a_change_unsettled():
    paired = paired_difference([0] * 4 + [1] * 44, [1] * 48)
    assert paired.low > 0
    assert not Change(Rate(**rate(0.9)), Rate(**rate(1.0)), paired).clear
