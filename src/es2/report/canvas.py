"""What figures are drawn on: an empty panel in the page's style, and its SVG.

A figure is drawn in the light palette; each of its colours becomes a CSS variable of the page with
that colour as its fallback, so that the page can recolour it for the dark. Text stays text and
takes the page's font. Panels are small, so that three stand side by side and one fills a phone.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from es2.report.looks import PALETTE, PAPER, variable

WIDTH, HEIGHT = 3.0, 2.05
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "es2",
    "font.family": "sans-serif",
    "font.size": 8,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": PALETTE["muted"],
    "axes.linewidth": 0.6,
    "axes.labelcolor": PALETTE["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.6,
}


@contextmanager
def panel(
    width: float = WIDTH, height: float = HEIGHT, head: float = 0.18
) -> Iterator[tuple[Figure, Axes]]:
    """An empty panel; margins are fixed, so that panels in a row share their baseline."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        bottom, top = 0.36 / height, 1 - head / height
        axes = figure.add_axes((0.31 / width, bottom, 1 - 0.38 / width, top - bottom))
        yield figure, axes


@contextmanager
def strip(count: int, rows: int, left: float, lines: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """Narrow empty panels side by side that share an axis of rows.

    Args:
        count: of panels.
        rows: that each shows.
        left: inches for the rows' names.
        lines: of the titles above.
    """
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        foot, head = 0.22, 0.08 + 0.11 * lines
        width, height = left + 0.84 * count, foot + head + 0.165 * rows
        figure = Figure(figsize=(width, height))
        edges = {"left": left / width, "right": 1 - 0.1 / width}
        edges |= {"bottom": foot / height, "top": 1 - head / height, "wspace": 0.24}
        row = figure.subplots(1, count, sharey=True, squeeze=False, gridspec_kw=edges)[0]
        yield figure, list(row)


def draw(figure: Figure, label: str) -> str:
    """The figure as an inline SVG element: no prologue, no size, ids of its own, themed colours."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    body = text[text.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    assert box is not None
    inner = body[body.index(">") + 1 : body.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'<style type="text/css">.*?</style>', "", inner, flags=re.DOTALL)
    inner = inner.replace("xlink:href=", "href=")
    inner = re.sub(r"\n\s*", "\n", inner)
    name = "f" + hashlib.sha1((label + inner).encode()).hexdigest()[:8]
    inner = re.sub(r'\bid="', f'id="{name}-', inner)
    inner = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", inner)
    for colour, code in PALETTE.items():
        inner = inner.replace(code, variable(colour))
    inner = inner.replace(PAPER, variable("paper"))
    words = f'role="img" aria-label="{html.escape(label)}"'
    return f'<svg class="panel" viewBox="{box[1]}" {words}>{inner}</svg>'
