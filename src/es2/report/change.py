"""From one rate to another, and whether the difference is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from es2.results.rates import Rate


@dataclass(frozen=True)
class Change:
    """From one model's rate to another's on the same prompts."""

    before: Rate
    after: Rate

    @property
    def points(self) -> float:
        """After less before, in percentage points."""
        return 100 * (self.after.rate - self.before.rate)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in points, from the two rates' own intervals.

        Newcombe's hybrid score interval (1998, method 10): each side takes the arms of the two
        intervals that face it. It ignores that both models answered the same prompts, and so is
        rather too wide than too narrow.
        """
        a, b = self.before, self.after
        down = math.hypot(b.rate - b.low, a.high - a.rate)
        up = math.hypot(b.high - b.rate, a.rate - a.low)
        return self.points - 100 * down, self.points + 100 * up

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves out zero."""
        low, high = self.interval
        return low > 0 or high < 0
