"""The spread over training seeds: a source of uncertainty of its own, beside that of the prompts.

An interval over prompts tells what other prompts would have shown of this one trained model. Another
seed trains another model; how much that moves a number, only more training runs can tell.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedSpread:
    """One number over several training seeds, in its own units.

    Attributes:
        mean: over the seeds.
        low: the lowest.
        high: the highest.
        deviation: the sample standard deviation; None for a single seed, which has none.
        n: how many seeds.
    """

    mean: float
    low: float
    high: float
    deviation: float | None
    n: int


def over_seeds(values: Sequence[float]) -> SeedSpread:
    """The spread of one measure over training seeds.

    Args:
        values: the measure under each seed, one at least.

    Raises:
        ValueError: if there are none.
    """
    if not values:
        raise ValueError("no seeds")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return SeedSpread(statistics.fmean(values), min(values), max(values), deviation, len(values))
