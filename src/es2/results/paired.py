"""Before against after on the same prompts: how large a change is, how sure, and what n could show.

Two models that answer the same prompts are compared prompt by prompt: what a prompt's own difficulty
does to both cancels, so a paired interval is narrower than that of two separate rates.

| | outcomes of 0 and 1 | other outcomes, such as a judge's score from 0 to 1 |
|---|---|---|
| interval | Tango's score interval (1998) | percentile bootstrap of the mean difference |
| p | exact McNemar test | sign-flip permutation test |
| detectable | exact power of that McNemar test | power of the paired t test |

The bootstrap is not for 0 and 1: where both models agree on all prompts, every resample does so too,
and the interval would have no width, as though a few dozen prompts had settled the matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.05
"""The share of true zeros that may be called a change, two-sided; intervals cover the rest."""

POWER = 0.8
"""How often a difference of the detectable size would be found."""

RESAMPLES = 10_000
"""Of a bootstrap or a permutation test."""

_Z = float(stats.norm.isf(LEVEL / 2))
_CHUNK = 1000
"""Resamples at a time, which bounds memory."""

_ROUNDING = 1e-12
"""Outcomes no further apart than this are the same."""


@dataclass(frozen=True)
class Difference:
    """The mean of after less before over pairs; all but n in units of the outcome (shares of 1).

    Attributes:
        change: after less before.
        low: lower end of its 95 % interval.
        high: upper end.
        n: the number of pairs.
        p: two-sided p-value of no change.
        detectable: the least true change that so many pairs would find four times in five; 1 if 0/1
            outcomes are too few to find any.
    """

    change: float
    low: float
    high: float
    n: int
    p: float
    detectable: float

    @property
    def noise(self) -> bool:
        """Whether there may be no change at all: zero lies inside the interval, or p is above 5 %.

        The two agree but where very few pairs differ. There the exact test is the stricter: four
        prompts lost and none won leave zero outside a score interval, at a p of 0.12.
        """
        return self.low <= 0 <= self.high or self.p > LEVEL


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Difference:
    """The mean change from before to after, item by item.

    Args:
        before: an outcome a prompt: 0 and 1 (or booleans), or scores.
        after: the other model's outcomes, of the same prompts in the same order.
        seed: of resampling; 0/1 outcomes need none.

    Raises:
        ValueError: if there are no pairs, the lengths differ or a value is not finite.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"{len(before)} outcomes before and {len(after)} after make no pairs")
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("an outcome is not a finite number")
    if np.isin(old, (0, 1)).all() and np.isin(new, (0, 1)).all():
        return _of_counts(int((new > old).sum()), int((new < old).sum()), len(old))
    return _of_scores(new - old, seed)


def _of_counts(gained: int, lost: int, n: int) -> Difference:
    low, high = tango(gained, lost, n)
    return Difference(
        change=(gained - lost) / n,
        low=low,
        high=high,
        n=n,
        p=float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        detectable=detectable_share(n, (gained + lost) / n),
    )


def _of_scores(changes: Float[ndarray, "n"], seed: int) -> Difference:
    n, mean = len(changes), float(changes.mean())
    if np.ptp(changes) < _ROUNDING:
        # No spread says nothing of prompts not seen. Some share of them, which n bounds, may differ;
        # by up to 1, the range of a share.
        unseen = tango(0, 0, n)[1]
        p = 1.0 if mean == 0 else 2.0 ** (1 - n)
        return Difference(mean, mean - unseen, mean + unseen, n, p, detectable_share(n, 0.0))
    random = np.random.default_rng(seed)
    drawn = _resampled(lambda size: changes[random.integers(n, size=(size, n))].mean(1))
    flipped = _resampled(lambda size: random.choice((-1.0, 1.0), size=(size, n)) @ changes / n)
    extreme = int((np.abs(flipped) >= abs(mean) - _ROUNDING).sum())
    low, high = np.quantile(drawn, (LEVEL / 2, 1 - LEVEL / 2))
    return Difference(
        change=mean,
        low=float(low),
        high=float(high),
        n=n,
        p=(extreme + 1) / (RESAMPLES + 1),
        detectable=detectable_mean(n, float(changes.std(ddof=1))),
    )


def _resampled(draw: Callable[[int], Float[ndarray, "_"]]) -> Float[ndarray, "resamples"]:
    return np.concatenate([draw(_CHUNK) for _ in range(RESAMPLES // _CHUNK)])


def tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Tango's score interval of a difference of paired shares (Statistics in Medicine 17, 1998).

    Its ends are the d at which `gained - lost` lies z standard errors from `n d`, the error taken at
    the likeliest shares that differ by d. It depends on the prompts that changed alone, has a width
    where none did, and stays within -1 and 1.

    Args:
        gained: pairs that went from 0 to 1.
        lost: pairs that went from 1 to 0.
        n: all pairs.
    """

    def distance(d: float) -> float:
        """Standard errors from `n d` up to `gained - lost`."""
        b = -gained - lost + (2 * n - gained + lost) * d
        q = (math.sqrt(b * b + 8 * n * lost * d * (1 - d)) - b) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        gap = gained - lost - n * d
        if variance <= 0:
            return math.copysign(math.inf, gap) if gap else 0.0
        return gap / math.sqrt(variance)

    middle = (gained - lost) / n
    # Just inside -1 and 1, where no variance is left.
    low = -1.0 if gained - lost == -n else brentq(lambda d: distance(d) - _Z, -1 + 1e-12, middle)
    high = 1.0 if gained - lost == n else brentq(lambda d: distance(d) + _Z, middle, 1 - 1e-12)
    return float(low), float(high)


def detectable_share(n: int, discordance: float) -> float:
    """The least difference of paired shares that the exact McNemar test finds four times in five.

    For a true difference d the share of pairs that differ is taken to be `discordance`, or d if that is
    more: a difference of d needs as many. So no discordance at hand does not make every difference
    detectable; about 8 pairs of n still have to change, all in one direction.

    Args:
        n: the number of pairs.
        discordance: the share of pairs with different outcomes.

    Returns:
        the difference, a share of 1; 1 if n is below 6, where no outcome is significant.
    """
    if n < 6:
        return 1.0
    return float(
        brentq(lambda d: mcnemar_power(n, max(d, discordance), d) - POWER, 1e-9, 1.0, xtol=1e-5)
    )


def mcnemar_power(n: int, discordance: float, difference: float) -> float:
    """How often the exact McNemar test finds a difference, over the numbers of pairs that may differ.

    Args:
        n: the number of pairs.
        discordance: the share of all pairs, of which these n are drawn, that differ.
        difference: the share that gained less the share that lost; at most `discordance`.
    """
    # Numbers of differing pairs beyond these have no weight.
    least, most = stats.binom.ppf((1e-10, 1 - 1e-10), n, discordance)
    differ = np.arange(max(0, least), most + 1)
    # So many of them in one direction are significant; below 6 no number is.
    enough = stats.binom.isf(LEVEL / 2, differ, 0.5) + 1
    gains = min(1.0, (discordance + difference) / (2 * discordance))
    found = stats.binom.sf(enough - 1, differ, gains)
    found += stats.binom.cdf(differ - enough, differ, gains)
    return float((stats.binom.pmf(differ, n, discordance) * found).sum())


def detectable_mean(n: int, deviation: float) -> float:
    """The least mean difference that a paired t test finds four times in five.

    `(t_0.975 + t_0.8) s / sqrt(n)`, the quantiles with n - 1 degrees of freedom.

    Args:
        n: the number of pairs, 2 at least.
        deviation: the standard deviation of their differences.
    """
    quantiles = stats.t.isf((LEVEL / 2, 1 - POWER), n - 1)
    return float(quantiles.sum() * deviation / math.sqrt(n))
