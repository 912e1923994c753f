"""What is fitted on: so many prompts of each class, and half of the harmless ones borderline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es2.data.fitting import Splits, bundled_fit, fit_prompts, spread
from es2.data.sources import Prompt

COUNTS = st.integers(0, 40)


def prompts(name: str, count: int) -> list[Prompt]:
    return [
        Prompt(f"{name} {i}", None, None, "", name == "borderline", f"{name}-{i}", name)
        for i in range(count)
    ]


def splits(name: str, count: int) -> Splits:
    return Splits(prompts(name, count), prompts(f"{name} held", 5), [])


@given(plain=COUNTS, lookalikes=COUNTS, limit=st.integers(1, 60))
def test_borderline_prompts_are_half_of_the_harmless_if_there_are_as_many(
    plain: int, lookalikes: int, limit: int
) -> None:
    parts = splits("harmful", 50), splits("harmless", plain), splits("borderline", lookalikes)
    fit = fit_prompts(*parts, at_most=limit)
    taken = [text for text in fit.harmless if text.startswith("borderline")]
    assert len(taken) == min(lookalikes, limit // 2)
    assert len(fit.harmless) == len(taken) + min(plain, limit - len(taken))
    assert len(set(fit.harmless)) == len(fit.harmless)
    assert len(fit.harmful) == min(limit, 50)


def test_without_a_limit_all_prompts_are_fitted_on() -> None:
    fit = fit_prompts(splits("harmful", 3), splits("harmless", 9), splits("borderline", 2))
    assert (len(fit.harmful), len(fit.harmless), len(fit.held_borderline)) == (3, 11, 5)
    assert len(fit.held_harmless) == 5


def test_what_is_taken_is_spread_over_its_source() -> None:
    fit = fit_prompts(splits("harmful", 9), splits("harmless", 9), splits("borderline", 9), 6)
    assert fit.harmful == [f"harmful {i}" for i in (0, 1, 3, 4, 6, 7)]
    assert fit.harmless == [
        *(f"harmless {i}" for i in (0, 3, 6)),
        *(f"borderline {i}" for i in (0, 3, 6)),
    ]
    assert spread(list(range(9)), 20) == list(range(9))


@pytest.mark.parametrize("borderline", [True, False])
def test_es2s_own_prompts_come_with_and_without_borderline_ones(borderline: bool) -> None:
    fit = bundled_fit(borderline)
    assert bool(fit.held_borderline) is borderline
    assert len(fit.harmless) == 1980 + 672 * borderline
