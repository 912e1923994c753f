"""The comparison of defences for readers: safety against cost, and who is on the frontier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from es2.report import figures
from es2.report.formats import NONE, decimal, duration, interval, listing, memory, name, percent
from es2.report.looks import looks_of
from es2.report.margin import ratio
from es2.report.panels import Figures, Panel, legend
from es2.results.comparison import Faced, Row, frontier, seed_spread
from es2.results.rates import Rate

READINGS: dict[str, Callable[[Faced], Rate]] = {
    "Judged DSR": lambda faced: faced.judged,
    "Refused": lambda faced: faced.refused,
    "Keyword DSR": lambda faced: faced.keyword,
}
"""What is told of an attack."""

Cell = Callable[[Row], str]
Share = Callable[[Row], Rate | None]


@dataclass(frozen=True)
class Grid:
    """One table: a row a model.

    Attributes:
        title: above it.
        heads: of the columns, the models' own first.
        rows: cells as text.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """What attacks leave, in every reading, and costs."""
    judged, refused, keyword, costs = (
        {head: partial(_written, share=share) for head, share in shares.items()}
        for shares in _shares(rows).values()
    )
    more: dict[str, Cell] = {
        # What declines fewer safe prompts may do so by declining less of everything.
        "unsafe prompts declined": partial(_written, share=lambda row: row.unsafe),
        "KL, nats": lambda row: decimal(row.result.cost.kl),
        "perplexity ×": lambda row: decimal(row.result.cost.perplexity_ratio),
        "safety margin": lambda row: ratio(row.margin) if row.margin else NONE,
        "step kept": _kept,
        "training": lambda row: duration(row.member.train_seconds),
        "peak memory": lambda row: memory(row.member.peak_memory_mb),
    }
    return [
        _grid(
            "Judged DSR at the attacker's best setting, % (95 % interval)",
            {"worst attack": _worst, **judged},
            rows,
        ),
        _grid(
            "Refused at that setting, % (95 % interval); the rest of judged DSR is incoherent",
            refused,
            rows,
        ),
        _grid("Keyword DSR at the attacker's best setting, % (95 % interval)", keyword, rows),
        _grid("Cost, % (95 % interval) where nothing else is said", {**costs, **more}, rows),
        *_seeds(rows),
    ]


def _shares(rows: Sequence[Row]) -> dict[str, dict[str, Share]]:
    """The columns that are rates, by what they tell: safety in three readings, and cost."""
    attacks = list(dict.fromkeys(attack for row in rows for attack in row.attacks))
    success: dict[str, dict[str, Share]] = {
        title: {name(attack): partial(_left, attack=attack, reading=reading) for attack in attacks}
        for title, reading in READINGS.items()
    }
    sets = list(dict.fromkeys(name for row in rows for name in row.declined))
    costs: dict[str, Share] = {
        "safe prompts declined": lambda row: row.refused,
        **({f"{of}, declined": partial(_declined, of=of) for of in sets} if len(sets) > 1 else {}),
        "harmless refused": lambda row: row.result.cost.over_refusal,
        "harmless incoherent": lambda row: row.result.cost.incoherent,
        "accuracy": lambda row: row.accuracy,
    }
    return {**success, "Cost": costs}


def _grid(title: str, cells: Mapping[str, Cell], rows: Sequence[Row]) -> Grid:
    body = [[name(row.label), *(cell(row) for cell in cells.values())] for row in rows]
    return Grid(title, ["", *cells], body)


def _seeds(rows: Sequence[Row]) -> list[Grid]:
    """The spread over training seeds, of those defences that were trained with several."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    several = {key: seed_spread(of) for key, of in groups.items() if len(of) > 1}
    if not several:
        return []
    heads = list(dict.fromkeys(attack for spreads in several.values() for attack in spreads))
    body = []
    for key, spreads in several.items():
        cells = [
            f"{percent(s.mean)} ({percent(s.low)}–{percent(s.high)})" if s else NONE
            for s in map(spreads.get, heads)
        ]
        body.append([f"{name(key)}, {len(groups[key])} seeds", *cells])
    title = "Judged DSR over training seeds, %: mean (lowest–highest)"
    return [Grid(title, ["", *map(name, heads)], body)]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The same for the terminal."""
    found = []
    for grid in grids(rows):
        table = Table(title=grid.title, box=SIMPLE_HEAD, title_justify="left")
        for place, head in enumerate(grid.heads):
            table.add_column(head, justify="right" if place else "left")
        for cells in grid.rows:
            table.add_row(*map(Text, cells))
        found.append(table)
    return found


def markdown(grids: Sequence[Grid]) -> str:
    """Tables for papers and pages, in GitHub's Markdown."""
    parts = []
    for grid in grids:
        rule = ["---", *("---:" for _ in grid.heads[1:])]
        lines = ["| " + " | ".join(cells) + " |" for cells in (grid.heads, rule, *grid.rows)]
        parts.append("\n".join([f"**{grid.title}**", "", *lines]))
    return "\n\n".join(parts) + "\n"


def sentence(rows: Sequence[Row]) -> str:
    """Who is on the frontier, and what that means; empty if safety or cost was not measured."""
    known = _points(rows)
    if len(known) < 2:
        return ""
    best = [name(label) for label in frontier(known)]
    beaten = len(known) - len(best)
    others = (
        f"; each of the other {beaten} is beaten in one and no better in the other"
        if beaten
        else ""
    )
    return (
        "On the frontier of judged DSR under the worst attack against safe prompts declined: "
        f"{listing(best)}{others}."
    )


def figure(rows: Sequence[Row]) -> Figures | None:
    """Safety against cost, the frontier drawn; None if either was not measured."""
    known = _points(rows)
    if len(known) < 2:
        return None
    points = {label: (cost, safety) for label, cost, safety in known}
    on = frontier(known)
    label = "Judged DSR under the worst attack against safe prompts declined: " + "; ".join(
        f"{name(one)} {percent(safety)} against {percent(cost)}" for one, cost, safety in known
    )
    drawn = figures.trade_off(points, on, f"{label}. On the frontier: {', '.join(on)}.")
    return Figures([Panel("", Markup(drawn))], legend(looks_of(list(points))))


def interval_panels(rows: Sequence[Row]) -> list[Panel]:
    """Every rate of the tables with its interval, a panel a table; none for a model alone."""
    if len(rows) < 2:
        return []
    panels = []
    for title, shares in _shares(rows).items():
        columns = {
            head: {row.label: rate for row in rows if (rate := share(row)) is not None}
            for head, share in shares.items()
        }
        if columns := {head: rates for head, rates in columns.items() if rates}:
            label = f"{title} of {len(rows)} models with 95 % intervals, as in the table below."
            drawn = figures.intervals(columns, [row.label for row in rows], label)
            panels.append(Panel(title, Markup(drawn)))
    return panels


def _points(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Cost and safety of every model that has both."""
    return [
        (row.label, row.refused.rate, row.worst[1].rate)
        for row in rows
        if row.refused is not None and row.worst is not None
    ]


def _kept(row: Row) -> str:
    """Such as `40 of 120`: at 0 every checkpoint was broken, and the model is its base."""
    kept, steps = row.member.kept, row.member.steps
    return NONE if kept is None or steps is None else f"{kept} of {steps}"


def _declined(row: Row, of: str) -> Rate | None:
    return row.declined.get(of)


def _written(row: Row, share: Share) -> str:
    rate = share(row)
    return NONE if rate is None else f"{percent(rate.rate)} ({interval(rate)})"


def _left(row: Row, attack: str, reading: Callable[[Faced], Rate]) -> Rate | None:
    return reading(row.attacks[attack]) if attack in row.attacks else None


def _worst(row: Row) -> str:
    return NONE if row.worst is None else f"{percent(row.worst[1].rate)} {name(row.worst[0])}"
