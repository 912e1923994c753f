"""How series are drawn, everywhere on the page: colours, lines and markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from es2.results.comparison import without_seed

# Colours that stay apart for the colour-blind, after Okabe and Ito; line and marker say it again.
PALETTE = {
    "ink": "#1d2024",
    "muted": "#5b626a",
    "rule": "#d6d9d4",
    "base": "#7b828a",
    "es2": "#0068b0",
    "third": "#b05a00",
    "fourth": "#8b4f97",
    "fifth": "#1b7a55",
    "harmful": "#cf4f0a",
    "harmless": "#2b8cbe",
    "borderline": "#a8578f",
    "refused": "#00665a",
    "incoherent": "#c3c7c1",
    "complied": "#e0652a",
}
PAPER = "#ffffff"
"""What figures stand on; on the page its own paper, so that what is hollow is so in the dark too."""
_CODES = {**PALETTE, "paper": PAPER}


@dataclass(frozen=True)
class Look:
    """How one series is drawn, everywhere on the page."""

    colour: str
    line: str = "-"
    marker: str = "o"
    hollow: bool = False


CLASSES = {
    "harmful": Look("harmful", marker="^"),
    "harmless": Look("harmless", marker="o"),
    "borderline": Look("borderline", marker="D", hollow=True),
}
_FURTHER = (
    Look("third", "-.", "s"),
    Look("fourth", ":", "D"),
    Look("fifth", "--", "v"),
    Look("third", "-", "^", hollow=True),
    Look("fourth", "-", "s", hollow=True),
    Look("fifth", "-", "D", hollow=True),
    Look("third", "--", "v", hollow=True),
    Look("fourth", "--", "^"),
    Look("fifth", "-.", "o"),
)


def looks_of(labels: Sequence[str]) -> dict[str, Look]:
    """A look for every model: the base hollow and dashed, ES2 solid, the others in turn.

    One defence's training seeds share its look.
    """
    known = {"base": Look("base", "--", "o", hollow=True), "es2": Look("es2", "-", "o")}
    rest = [name for name in dict.fromkeys(map(without_seed, labels)) if name not in known]
    known |= {name: _FURTHER[i % len(_FURTHER)] for i, name in enumerate(rest)}
    return {label: known[without_seed(label)] for label in labels}


def margin_look(look: Look, complied: bool) -> Look:
    """A model's line in the figure of the safety margin: solid for complied, dotted for incoherent."""
    return replace(look, line="-" if complied else ":", marker="o" if complied else "s")


def series_looks(count: int) -> list[Look]:
    """Looks for lines that are not models."""
    order = (
        Look("es2"),
        Look("third", "--", "s"),
        Look("fourth", ":", "D"),
        Look("fifth", "-.", "v"),
        Look("base", "--", "o", hollow=True),
    )
    return [order[i % len(order)] for i in range(count)]


def variable(colour: str) -> str:
    """A colour of the palette, or `paper`, as the page's variable, with itself as the fallback."""
    return f"var(--{colour},{_CODES[colour]})"
