"""From one rate to another, and whether the difference is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from es2.results.paired import Difference
from es2.results.rates import Rate


@dataclass(frozen=True)
class Change:
    """From one model's rate to another's.

    Attributes:
        before: the one's.
        after: the other's.
        paired: the difference prompt by prompt, where the outcomes on the same prompts are known.
    """

    before: Rate
    after: Rate
    paired: Difference | None = None

    @property
    def points(self) -> float:
        """After less before, in percentage points."""
        return 100 * (self.after.rate - self.before.rate)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in points: the paired one, or else from the two rates' own.

        The latter is Newcombe's hybrid score interval (1998, method 10): each side takes the arms of
        the two intervals that face it. It ignores that both models answered the same prompts, and so
        is rather too wide than too narrow.
        """
        if self.paired is not None:
            return 100 * self.paired.low, 100 * self.paired.high
        a, b = self.before, self.after
        down = math.hypot(b.rate - b.low, a.high - a.rate)
        up = math.hypot(b.high - b.rate, a.rate - a.low)
        return self.points - 100 * down, self.points + 100 * up

    @property
    def clear(self) -> bool:
        """Whether there was a change: its interval leaves out zero, and no paired test objects."""
        if self.paired is not None:
            return not self.paired.noise
        low, high = self.interval
        return low > 0 or high < 0
