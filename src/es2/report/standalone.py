"""A figure of the report as a file of its own, for papers and pages."""

from __future__ import annotations

import re

from es2.report.looks import PAPER

_SCALE = 1.5
"""Pixels for each of the drawing's points."""


def size(svg: str) -> tuple[float, float]:
    """Width and height of a drawing in points of print."""
    box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg)
    assert box is not None
    return float(box[1]), float(box[2])


def standalone(svg: str) -> str:
    """The figure as a whole SVG document: with a namespace, a size, a font and a ground.

    Args:
        svg: as `report/canvas.py` writes it, to stand in a page.
    """
    width, height = (round(_SCALE * side) for side in size(svg))
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" style="background:{PAPER}"'
    )
    # A Markup, as pages hold it, would escape what it is given.
    return str(svg).replace('<svg class="panel"', whole, 1) + "\n"
