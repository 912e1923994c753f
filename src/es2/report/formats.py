"""How the report writes numbers and names."""

from __future__ import annotations

import math
from collections.abc import Iterable

from es2.report.change import Change
from es2.results.paired import Difference
from es2.results.rates import Rate

NONE = "–"
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"

_NAMES = {
    "es2": "ES2",
    "es2_paper": "ES2 as published",
    "es2+safety_sft": "ES2 + safety SFT",
    "scav": "SCAV",
    "repe": "RepE",
    "gcg": "GCG",
    "autodan": "AutoDAN",
    "direct": "Direct request",
    "prefill": "Prefill",
    "soft_prompt": "Soft prompt",
    "refusal_ablation": "Refusal ablation",
    "adapter_strip": "Adapter strip",
    "best_of_n": "Best of N",
    "safety_sft": "Safety SFT",
    "dpl": "DPL",
    "circuit_breakers": "Circuit breakers",
    "repbend": "RepBend",
    "lat": "LAT",
}


def name(key: str) -> str:
    """An attack's or defence's published name, for its key in the records."""
    own, _, seed = key.partition("@")
    if seed:
        return f"{name(own)}, seed {seed}"
    if key.endswith("_stale"):
        return f"{name(key.removesuffix('_stale'))}, fitted on base"
    return _NAMES.get(key, key.replace("_", " "))


def percent(value: float) -> str:
    """A fraction of 1 as a whole percentage without its sign; never 0 or 100 by rounding alone."""
    scaled = round(100 * value, 4)
    if 0 < scaled < 0.5:
        return "<1"
    if 99.5 <= scaled < 100:
        return ">99"
    return f"{scaled:.0f}"


def interval(rate: Rate) -> str:
    """The 95 % interval, such as `72–93`."""
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f}"


def signed(value: float, digits: int = 0) -> str:
    """With a true minus, and `±0` for what rounds to nothing."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if value > 0 else MINUS) + text


def points(change: Change) -> str:
    """Such as `+1 point`."""
    text = signed(change.points)
    return f"{text}{SPACE}point{'' if text in ('+1', MINUS + '1') else 's'}"


def difference(paired: Difference) -> str:
    """Such as `+1.0 points (95 %: −2.0 to +4.0), inside the noise; n = 48 detects 16 points`."""
    change, low, high = (signed(100 * v, 1) for v in (paired.change, paired.low, paired.high))
    verdict = "beyond the noise"
    if paired.noise:
        zero_inside = paired.low <= 0 <= paired.high
        verdict = "inside the noise" if zero_inside else f"not settled (exact p {paired.p:.2f})"
    if paired.detectable >= 1:
        power = f"n = {paired.n} is too few to detect any change"
    else:
        power = f"n = {paired.n} detects {decimal(100 * paired.detectable, 2)}{SPACE}points"
    return f"{change}{SPACE}points (95{SPACE}%: {low} to {high}), {verdict}; {power}"


def decimal(value: float | None, digits: int = 3) -> str:
    """To a number of significant digits; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.{digits}g}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Such as `4 min 20 s`."""
    if seconds is None:
        return NONE
    if seconds < 59.5:
        return f"{seconds:.1f}{SPACE}s" if seconds < 10 else f"{seconds:.0f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{SPACE}h {minutes}{SPACE}min"
    return f"{minutes}{SPACE}min {rest}{SPACE}s"


def memory(megabytes: float | None) -> str:
    """Such as `1.4 GB`."""
    if megabytes is None:
        return NONE
    if megabytes < 1000:
        return f"{megabytes:.0f}{SPACE}MB"
    return f"{megabytes / 1000:.1f}{SPACE}GB"


def power_of_ten(value: float) -> str:
    """A power of ten for an axis, such as `10⁻³`."""
    exponent = round(math.log10(value))
    if exponent == 0:
        return "1"
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(exponent).translate(raised)


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
