"""Paired differences: published values, slow versions, coverage and power by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from es2.results.paired import (
    Difference,
    detectable_mean,
    detectable_share,
    mcnemar_power,
    paired_difference,
    tango,
)


def outcomes(gained: int, lost: int, n: int) -> tuple[list[int], list[int]]:
    same = n - gained - lost
    return [0] * gained + [1] * lost + [1] * same, [1] * gained + [0] * lost + [1] * same


def of(gained: int, lost: int, n: int) -> Difference:
    return paired_difference(*outcomes(gained, lost, n))


def test_the_interval_matches_a_published_example() -> None:
    # Bentur et al.'s airway data in Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014).
    found = of(gained=1, lost=7, n=21)
    assert (round(found.change, 3), round(found.low, 3), round(found.high, 3)) == (
        -0.286,
        -0.517,
        -0.026,
    )


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (3, 2, 30), (0, 5, 40), (12, 3, 48)])
def test_ends_lie_z_standard_errors_away_at_the_likeliest_shares(
    gained: int, lost: int, n: int
) -> None:
    def unlikely(q: float, d: float) -> float:
        shares = np.maximum([q + d, q, 1 - 2 * q - d], 1e-300)
        return -float(np.log(shares) @ [gained, lost, n - gained - lost])

    for end in tango(gained, lost, n):
        bounds = (max(0.0, -end), (1 - end) / 2)
        q = optimize.minimize_scalar(
            unlikely, args=(end,), bounds=bounds, method="bounded", options={"xatol": 1e-10}
        ).x
        error = math.sqrt(n * (2 * q + end - end * end))
        assert abs(gained - lost - n * end) / error == pytest.approx(1.959964, rel=1e-3)


@pytest.mark.parametrize("n", [1, 5, 48, 1000])
def test_agreement_on_all_pairs_is_no_certainty(n: int) -> None:
    found = of(0, 0, n)
    assert found.high == pytest.approx(1.959964**2 / (n + 1.959964**2), rel=1e-4)
    assert found.low == pytest.approx(-found.high)
    assert (found.change, found.p, found.noise) == (0, 1, True)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.data())
def test_the_interval_holds_the_change_and_mirrors(
    pair: tuple[int, int], data: st.DataObject
) -> None:
    gained, n = pair
    lost = data.draw(st.integers(0, n - gained))
    found, back = of(gained, lost, n), of(lost, gained, n)
    assert -1 <= found.low <= found.change <= found.high <= 1
    assert found.low < found.high
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # Every possible outcome, weighed by its probability, at a few true shares.
    n = 40
    intervals = {
        (gained, lost): tango(gained, lost, n)
        for gained, lost in itertools.product(range(n + 1), repeat=2)
        if gained + lost <= n
    }
    for p_gained, p_lost in ((0.1, 0.05), (0.05, 0.05), (0.3, 0.1), (0.02, 0.0)):
        covered = sum(
            math.comb(n, g)
            * math.comb(n - g, k)
            * p_gained**g
            * p_lost**k
            * (1 - p_gained - p_lost) ** (n - g - k)
            for (g, k), (low, high) in intervals.items()
            if low <= p_gained - p_lost <= high
        )
        assert 0.93 < covered <= 1


def test_p_is_that_of_a_fair_coin_over_the_pairs_that_differ() -> None:
    gained, lost = 9, 2
    tail = sum(math.comb(11, k) for k in range(gained, 12)) / 2**11
    assert of(gained, lost, 60).p == pytest.approx(2 * tail)


def test_booleans_are_counted() -> None:
    found = paired_difference([True, False, False], [True, True, False])
    assert found.change == pytest.approx(1 / 3)
    assert found.n == 3


def test_a_score_intervals_claim_that_the_exact_test_does_not_share_is_noise() -> None:
    found = of(gained=4, lost=0, n=48)
    assert found.low > 0 and found.p == 0.125
    assert found.noise
    assert not of(gained=8, lost=0, n=48).noise


def test_scores_have_the_exact_sign_flip_p() -> None:
    random = np.random.default_rng(3)
    before = random.random(9)
    after = before + 0.1 * random.random(9) - 0.02
    changes = after - before
    means = [abs(np.mean(changes * signs)) for signs in itertools.product((-1, 1), repeat=9)]
    expected = np.mean(np.array(means) >= abs(changes.mean()) - 1e-12)
    assert paired_difference(before.tolist(), after.tolist()).p == pytest.approx(expected, abs=0.01)


def test_the_bootstrap_interval_of_scores_is_that_of_a_large_sample() -> None:
    random = np.random.default_rng(1)
    before = random.random(400)
    after = before + 0.05 + 0.2 * random.standard_normal(400)
    found = paired_difference(before.tolist(), after.tolist())
    changes = after - before
    half = 1.96 * changes.std(ddof=1) / math.sqrt(400)
    assert found.low == pytest.approx(changes.mean() - half, abs=0.03 * half * 2)
    assert found.high == pytest.approx(changes.mean() + half, abs=0.03 * half * 2)
    assert not found.noise and found.p < 0.001


def test_the_same_seed_gives_the_same_interval_of_scores() -> None:
    before, after = [0.1, 0.5, 0.3, 0.8], [0.2, 0.4, 0.6, 0.8]
    assert paired_difference(before, after, seed=4) == paired_difference(before, after, seed=4)
    assert paired_difference(before, after, seed=4) != paired_difference(before, after, seed=5)


def test_scores_that_all_change_alike_leave_room_for_prompts_not_seen() -> None:
    same = paired_difference([0.25, 0.5, 0.75], [0.25, 0.5, 0.75])
    assert same.low < 0 < same.high and same.p == 1 and same.detectable > 0
    shifted = paired_difference([0.1, 0.2, 0.3] * 20, [0.4, 0.5, 0.6] * 20)
    assert shifted.change == pytest.approx(0.3)
    assert shifted.low < 0.3 < shifted.high and not shifted.noise


@pytest.mark.parametrize(("n", "discordance"), [(48, 0.0), (48, 0.3), (200, 0.1), (600, 0.02)])
def test_a_detectable_share_is_found_four_times_in_five(n: int, discordance: float) -> None:
    difference = detectable_share(n, discordance)
    differ = max(difference, discordance)
    random = np.random.default_rng(0)
    chances = [(differ + difference) / 2, (differ - difference) / 2, 1 - differ]
    draws, times = np.unique(random.multinomial(n, chances, size=4000), axis=0, return_counts=True)
    found = [of(int(gained), int(lost), n).p <= 0.05 for gained, lost, _ in draws]
    assert times[found].sum() / 4000 == pytest.approx(0.8, abs=0.025)


def test_no_discordance_does_not_make_every_difference_detectable() -> None:
    assert of(0, 0, 48).detectable > 6 / 48
    assert of(0, 0, 4000).detectable < of(0, 0, 400).detectable < of(0, 0, 48).detectable
    assert of(15, 15, 48).detectable > of(2, 2, 48).detectable


@pytest.mark.parametrize("n", range(1, 6))
def test_five_pairs_detect_nothing(n: int) -> None:
    assert of(n, 0, n).p > 0.05
    assert of(n, 0, n).detectable == 1


def test_a_true_zero_is_found_no_oftener_than_the_level() -> None:
    assert mcnemar_power(80, 0.3, 0.0) <= 0.05


def test_a_detectable_mean_is_found_four_times_in_five() -> None:
    n, deviation = 25, 0.3
    difference = detectable_mean(n, deviation)
    random = np.random.default_rng(0)
    draws = difference + deviation * random.standard_normal((20_000, n))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(np.abs(t) > 2.0639) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1], [1, 0]), ([0.1, math.nan], [0, 0])])
def test_what_makes_no_pairs_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="outcome"):
        paired_difference(before, after)
