"""Rates with confidence intervals: every share that es2 reports carries its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


@dataclass(frozen=True)
class Rate:
    """A share of trials with its 95 % interval; all three are fractions of 1.

    Attributes:
        rate: successes over trials.
        low: lower end of the interval.
        high: upper end.
        n: the number of trials.
    """

    rate: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> Rate:
    """The Wilson score interval (1927), which keeps its coverage for small n and near 0 and 1.

    The ends are the two p with |successes/n - p| = z sqrt(p (1 - p) / n).

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    share, z2 = successes / n, _Z * _Z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding may carry an end past the rate itself where all or none succeed.
    return Rate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n)


def share_of(outcomes: Iterable[bool]) -> Rate:
    """The rate of True among outcomes."""
    listed = list(outcomes)
    return wilson(sum(listed), len(listed))
