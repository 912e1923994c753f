"""What is fitted on: so many of each class; of the harmless half borderline, a quarter structured."""

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


@given(plain=COUNTS, lookalikes=COUNTS, formed=COUNTS, limit=st.integers(1, 60))
def test_half_of_the_harmless_are_borderline_and_a_quarter_structured_if_there_are_as_many(
    plain: int, lookalikes: int, formed: int, limit: int
) -> None:
    extra = splits("borderline", lookalikes), splits("structured", formed)
    fit = fit_prompts(splits("harmful", 50), splits("harmless", plain), *extra, at_most=limit)
    alike, forms = (
        [text for text in fit.harmless if text.startswith(name)]
        for name in ("borderline", "structured")
    )
    assert len(alike) == min(lookalikes, limit // 2)
    assert len(forms) == min(formed, limit // 4)
    assert len(fit.harmless) == len(alike + forms) + min(plain, limit - len(alike + forms))
    assert len(set(fit.harmless)) == len(fit.harmless)
    assert len(fit.harmful) == min(limit, 50)


def test_without_a_limit_all_prompts_are_fitted_on() -> None:
    fit = fit_prompts(splits("harmful", 3), splits("harmless", 9), splits("borderline", 2))
    assert (len(fit.harmful), len(fit.harmless), len(fit.held_borderline)) == (3, 11, 5)
    assert len(fit.held_harmless) == 5


def test_what_is_taken_is_spread_over_its_source() -> None:
    fit = fit_prompts(
        splits("harmful", 9), splits("harmless", 9), splits("borderline", 9), at_most=6
    )
    assert fit.harmful == [f"harmful {i}" for i in (0, 1, 3, 4, 6, 7)]
    assert fit.harmless == [
        *(f"harmless {i}" for i in (0, 3, 6)),
        *(f"borderline {i}" for i in (0, 3, 6)),
    ]
    assert spread(list(range(9)), 20) == list(range(9))


@pytest.mark.parametrize("extra", [True, False])
def test_es2s_own_prompts_come_with_and_without_borderline_and_structured_ones(extra: bool) -> None:
    fit = bundled_fit(extra)
    assert bool(fit.held_borderline) is bool(fit.held_structured) is extra
    assert len(fit.harmless) == 1980 + (768 + 302) * extra
