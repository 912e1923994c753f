"""The spread over training seeds."""

from __future__ import annotations

import math

import pytest

from es2.results.seeds import over_seeds


def test_spread_is_the_seeds_own() -> None:
    found = over_seeds([0.8, 0.9, 1.0])
    assert (found.low, found.high, found.n) == (0.8, 1.0, 3)
    assert found.mean == pytest.approx(0.9)
    assert found.deviation == pytest.approx(math.sqrt((0.01 + 0 + 0.01) / 2))


def test_one_seed_has_no_deviation() -> None:
    assert over_seeds([0.4]).deviation is None


def test_no_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="no seeds"):
        over_seeds([])
