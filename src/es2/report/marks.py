"""Small marks that stand in the page's lines and tables: legend keys, rates, verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from es2.judges.base import VERDICTS
from es2.report.formats import percent
from es2.report.looks import Look, variable
from es2.results.rates import Rate

_MARKERS = {
    "o": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "^": "M0-4L4 3.4H-4z",
    "v": "M0 4L4-3.4H-4z",
    "s": "M-3.3-3.3H3.3V3.3H-3.3z",
    "D": "M0-4.4L4.4 0L0 4.4L-4.4 0z",
}
_DASHES = {"-": "none", "--": "5 3", "-.": "6 2 2 2", ":": "2 2"}


def interval_mark(rate: Rate, look: Look) -> str:
    """A rate and its interval on a line from 0 to 100 %, to stand in a table's cell."""
    low, mid, high = (f"{100 * value:.2f}%" for value in (rate.low, rate.rate, rate.high))
    stroke = f"stroke:{variable(look.colour)};stroke-width:3"
    return (
        '<svg class="mark" height="14" aria-hidden="true">'
        '<line class="track" x1="0%" x2="100%" y1="7" y2="7"/>'
        f'<line x1="{low}" x2="{high}" y1="7" y2="7" style="{stroke}"/>'
        f'<svg x="{mid}" y="7" overflow="visible">{_marker(look)}</svg></svg>'
    )


def verdict_bar(verdicts: Mapping[str, float]) -> str:
    """Shares of refused, incoherent and complied as one bar of 100 %."""
    label = ", ".join(f"{verdict} {percent(verdicts[verdict])} %" for verdict in VERDICTS)
    start, parts = 0.0, []
    for verdict in VERDICTS:
        width = 100 * verdicts[verdict]
        if width > 0:
            parts.append(
                f'<rect class="{verdict}" x="{start:.2f}%" width="{width:.2f}%" height="16"/>'
            )
        start += width
    return f'<svg class="bar" height="16" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def swatch(look: Look, line: bool = True) -> str:
    """A legend's key: the series' line and marker, or its marker alone."""
    half = 16 if line else 6
    stroke = f"stroke:{variable(look.colour)};stroke-width:2;stroke-dasharray:{_DASHES[look.line]}"
    drawn = f'<line x1="-{half}" x2="{half}" y1="0" y2="0" style="{stroke}"/>' if line else ""
    return (
        f'<svg class="swatch" width="{2 * half}" height="12" viewBox="-{half} -6 {2 * half} 12" '
        f'aria-hidden="true">{drawn}{_marker(look)}</svg>'
    )


def _marker(look: Look) -> str:
    colour = variable(look.colour)
    fill = variable("paper") if look.hollow else colour
    style = f"fill:{fill};stroke:{colour};stroke-width:1.6"
    return f'<path d="{_MARKERS[look.marker]}" style="{style}"/>'
