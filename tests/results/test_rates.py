"""Rates: the Wilson interval against known values, its defining equation, and its properties."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es2.results.rates import Rate, share_of, wilson


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 2000))
    return draw(st.integers(0, n)), n


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (Statistics in Medicine 17, 1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(successes: int, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@settings(deadline=None)
@given(counts())
def test_wilson_ends_lie_z_standard_errors_from_the_rate(count: tuple[int, int]) -> None:
    found = wilson(*count)
    for end in (found.low, found.high):
        if not math.isclose(end, found.rate, abs_tol=1e-9):
            error = math.sqrt(end * (1 - end) / found.n)
            assert abs(found.rate - end) / error == pytest.approx(1.959964, rel=1e-5)


@settings(deadline=None)
@given(counts())
def test_wilson_contains_the_rate_and_stays_within_0_and_1(count: tuple[int, int]) -> None:
    found = wilson(*count)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.low < found.high


@settings(deadline=None)
@given(counts())
def test_wilson_mirrors_when_successes_and_failures_swap(count: tuple[int, int]) -> None:
    one, other = wilson(*count), wilson(count[1] - count[0], count[1])
    assert one.low == pytest.approx(1 - other.high, abs=1e-12)


@settings(deadline=None)
@given(counts())
def test_wilson_moves_up_with_each_success(count: tuple[int, int]) -> None:
    successes, n = count
    if successes < n:
        one, more = wilson(successes, n), wilson(successes + 1, n)
        assert one.low < more.low and one.high < more.high


@settings(deadline=None)
@given(counts())
def test_wilson_narrows_with_more_trials_at_the_same_rate(count: tuple[int, int]) -> None:
    successes, n = count
    few, many = wilson(successes, n), wilson(4 * successes, 4 * n)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(successes, n)


def test_share_of_counts_the_true_ones() -> None:
    assert share_of(flag for flag in (True, False, True, True)) == wilson(3, 4)
    assert isinstance(share_of([True]), Rate)
