"""Holm's correction against the closed test that it is a shortcut of."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from es2.results.multiple import chance_note, holm


def closed_test(p_values: dict[str, float]) -> dict[str, float]:
    """The largest Bonferroni p over all families that hold a comparison."""
    names = list(p_values)
    families = [f for size in range(1, len(names) + 1) for f in combinations(names, size)]
    return {
        name: max(
            min(1.0, len(f) * min(p_values[other] for other in f)) for f in families if name in f
        )
        for name in names
    }


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_bonferroni_test(seed: int) -> None:
    drawn = np.random.default_rng(seed).random(6) ** 3
    p_values = {f"c{i}": float(p) for i, p in enumerate(drawn)}
    assert holm(p_values) == pytest.approx(closed_test(p_values))


def test_order_and_names_are_kept_and_equal_ps_stay_equal() -> None:
    found = holm({"b": 0.04, "a": 0.01, "c": 0.04})
    assert list(found) == ["b", "a", "c"]
    assert found["b"] == found["c"] == pytest.approx(0.08)


def test_no_family_has_no_correction() -> None:
    assert holm({}) == {}
    assert holm({"only": 0.03}) == {"only": 0.03}


def test_the_note_counts_what_chance_would_pass_and_what_holds() -> None:
    p_values = {"one": 0.001, "two": 0.04, **{f"c{i}": 0.5 for i in range(10)}}
    note = chance_note(p_values)
    assert "12 comparisons" in note and "0.6 look significant" in note
    assert "2 do, and 1 still do" in note
