"""A figure of the report as a file of its own, for papers and pages."""

from __future__ import annotations

import re

_SCALE = 1.5
"""Pixels for each of the drawing's points."""


def standalone(svg: str) -> str:
    """The figure as a whole SVG document: with a namespace, a size, a font and a ground.

    Args:
        svg: as `report/figures.py` draws it, to stand in a page.
    """
    box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', svg)
    assert box is not None
    width, height = (round(_SCALE * float(side)) for side in box.groups())
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" style="background:#ffffff"'
    )
    return svg.replace('<svg class="panel"', whole, 1) + "\n"
