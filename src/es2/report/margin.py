"""The safety margin for readers: the headline figure, a sentence, a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from es2.report import figures
from es2.report.formats import NONE, SPACE, decimal, name, percent
from es2.report.looks import PALETTE, Look, looks_of, margin_look
from es2.report.marks import swatch
from es2.report.page import environment
from es2.report.panels import Figures, Key, Panel
from es2.results.margin import ANY, READ, DirectionMargin, HalfNorm, Margins, PushResult, Ratio
from es2.results.rates import Rate

OVERLAID = 3
"""So many models' curves can be told apart in one panel."""

DIRECTIONS = {ANY: "SCAV's or RepE's", "scav": "SCAV's", "repe": "RepE's", "random": "a random"}


def worst(directions: Mapping[str, DirectionMargin]) -> tuple[str, DirectionMargin] | None:
    """The attacker who tries every direction, or the one with the least margin; None without any."""
    if ANY in directions:
        return ANY, directions[ANY]
    known = [(key, directions[key]) for key in READ if key in directions]
    return min(known, key=lambda pair: pair[1].margin.value, default=None)


def ratio(value: Ratio) -> str:
    """A margin or a gain, such as `0.8`, `> 5.8` or, where nothing is known, a dash.

    A bound is rounded to where it still holds: at least 5.56 is `> 5.5`.
    """
    if value.bound == "unknown":
        return NONE
    if value.bound == "exact":
        return decimal(value.value, 2)
    sign, turn = (">", math.floor) if value.bound == "at least" else ("<", math.ceil)
    unit = 10.0 ** (math.floor(math.log10(value.value or 1.0)) - 1)
    return f"{sign}{SPACE}{decimal(turn(round(value.value / unit, 9)) * unit, 2)}"


def half(found: HalfNorm) -> str:
    """A size in percent of the norm; a dash where it was not reached."""
    return NONE if found.norm is None else f"{decimal(100 * found.norm, 2)}{SPACE}%"


def sentences(margins: Margins) -> list[str]:
    """What the margin says of every model, at the direction that suits the attacker best."""
    parts = []
    for key, directions in margins.models.items():
        found = worst(directions)
        if found is None:
            continue
        way, swept = found
        most = max(swept.pushes, key=lambda push: push.complied_by.rate).complied_by
        if swept.complied.norm is None:
            safety = f"no push makes half the prompts comply ({percent(most.rate)}{SPACE}% at most)"
        else:
            safety = f"half the prompts comply by a push of {half(swept.complied)} of the norm"
        if swept.incoherent.norm is None:
            meaning = "answers stay coherent throughout"
        else:
            meaning = f"half the answers are incoherent at {half(swept.incoherent)}"
        first = swept.margin.value > 1 and swept.margin.bound in ("exact", "at least")
        verdict = "meaning breaks before safety" if first else "safety breaks before meaning"
        if swept.margin.bound == "unknown":
            verdict = "the sweep reached neither"
        elif swept.margin.low <= 1 <= swept.margin.high:
            verdict += ", though the interval holds 1"
        parts.append(
            f"{'The base' if key == 'base' else name(key)}, pushed along {DIRECTIONS[way]} "
            f"direction: {safety}, {meaning}: "
            f"margin {ratio(swept.margin)}, {verdict}."
        )
    return parts


def figure(margins: Margins) -> Figures:
    """Complied with by then, and incoherent: one panel a direction, every model in it.

    Of more models than can be told apart in a panel each has its own, at the direction that suits the
    attacker best.
    """
    looks = looks_of(list(margins.models))
    kinds = {True: "complied by then", False: "incoherent"}
    if len(looks) > OVERLAID:
        found = {key: one for key, of in margins.models.items() if (one := worst(of))}
        panels = [
            Panel(f"{name(key)}: margin {ratio(of.margin)}", _drawn(way, {key: of}, looks))
            for key, (way, of) in found.items()
        ]
        line = {kind: swatch(margin_look(Look("ink"), kind)) for kind in kinds}
        return Figures(panels, [Key(Markup(line[kind]), text) for kind, text in kinds.items()])
    panels = [
        Panel(f"Along {title} direction, % of prompts", _drawn(way, swept, looks))
        for way, title in DIRECTIONS.items()
        if (swept := {key: of[way] for key, of in margins.models.items() if way in of})
    ]
    legend = [
        Key(Markup(swatch(margin_look(look, kind))), f"{name(key)}: {text}")
        for key, look in looks.items()
        for kind, text in kinds.items()
    ]
    return Figures(panels, legend)


def _drawn(way: str, swept: Mapping[str, DirectionMargin], looks: Mapping[str, Look]) -> Markup:
    """Models along one direction, with the sizes in words."""
    curves = {key: _curves(of.pushes) for key, of in swept.items()}
    label = f"Pushed along {DIRECTIONS[way]} direction: " + "; ".join(
        f"{name(key)}: half complied at {half(of.complied)}, half incoherent at "
        f"{half(of.incoherent)}, margin {ratio(of.margin)}"
        for key, of in swept.items()
    )
    return Markup(figures.margin(curves, looks, f"{label}."))


def _curves(pushes: list[PushResult]) -> dict[str, list[tuple[float, Rate]]]:
    return {
        "complied": [(push.norm, push.complied_by) for push in pushes],
        "incoherent": [(push.norm, push.verdicts["incoherent"]) for push in pushes],
    }


def margin_page(margins: Margins, title: str) -> str:
    """The sentence and the figure as a page of their own."""
    return (
        environment()
        .get_template("margin.html.j2")
        .render(
            title=title,
            palette=PALETTE,
            margin=figure(margins),
            margin_findings=sentences(margins),
        )
    )


def margin_table(margins: Margins) -> Table:
    """A row a direction and model, for the terminal."""
    grid = Table(
        title="Safety margin: size of the push, % of the norm (95 % interval)",
        caption="margin: half complied over half incoherent; above 1, meaning breaks before safety\n"
        "– not reached within the sweep; > and < bounds that follow from that",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("direction", "model", "half complied", "half incoherent", "margin", "× base"):
        grid.add_column(heading, justify="left" if heading in ("direction", "model") else "right")
    for way, title in DIRECTIONS.items():
        for key, directions in margins.models.items():
            if (found := directions.get(way)) is not None:
                grid.add_row(
                    title,
                    Text(name(key)),
                    _half(found.complied),
                    _half(found.incoherent),
                    _ratio(found.margin),
                    _ratio(found.gain) if found.gain else "",
                )
    return grid


def _half(found: HalfNorm) -> str:
    ends = (decimal(100 * end, 2) if end is not None else NONE for end in (found.low, found.high))
    middle = NONE if found.norm is None else decimal(100 * found.norm, 2)
    return f"{middle} ({'–'.join(ends)})" if found.low is not None else middle


def _ratio(found: Ratio) -> str:
    if found.bound == "unknown":
        return NONE
    return f"{ratio(found)} ({decimal(found.low, 2)}–{decimal(found.high, 2)})"
