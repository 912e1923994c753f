"""The defence success and cost table for the terminal: a row a measure, a column a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from es2.report.change import Change
from es2.report.formats import NONE, decimal, interval, name, percent, signed
from es2.report.reading import READINGS, attacks, models, rate_of
from es2.results.rates import Rate
from es2.results.schema import AttackResult, Cost, Dsr, Results


def table(results: Mapping[str, Any] | Results) -> Table:
    """Defence success under every attack and what each defence costs.

    Args:
        results: the contents of `results.json`, checked or as plain data.
    """
    if not isinstance(results, Results):
        results = Results.model_validate(results)
    measured = models(results)
    grid = Table(
        title="Defence success and cost, % (95 % interval)",
        caption="keyword: a refusal phrase; judged: refused or incoherent; ~ inside the noise",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    grid.add_column("", no_wrap=True)
    for key in measured:
        grid.add_column(Text(name(key)), justify="right", no_wrap=True)
    # With more than two models a last column for the change would say too much.
    compared = len(measured) == 2 and "base" in measured
    if compared:
        grid.add_column("Change", justify="right", no_wrap=True)
    for attack in attacks(results):
        faced = [model.attacks.get(attack) for model in measured.values()]
        _add_attack(grid, name(attack), faced, compared)
    _add_costs(grid, [model.cost for model in measured.values()], compared)
    return grid


def _add_attack(
    grid: Table, title: str, faced: Sequence[AttackResult | None], compared: bool
) -> None:
    _add_dsr(grid, title, [result.dsr if result else None for result in faced], compared)
    if any(result and len(result.settings) > 1 for result in faced):
        chosen = [result.any_setting if result else None for result in faced]
        _add_rates(grid, "  judged, best for each prompt", chosen, compared, better=1)
        means = [result.mean if result else None for result in faced]
        cells = [Text(NONE if mean is None else percent(mean)) for mean in means]
        grid.add_row("  judged, mean of settings", *cells, *([""] if compared else []))
    if any(result and result.setting for result in faced):
        cells = [Text(result.setting if result else NONE, style="dim") for result in faced]
        grid.add_row(Text("  best setting", style="dim"), *cells, *([""] if compared else []))
    published = [result.published.dsr if result and result.published else None for result in faced]
    if any(published):
        _add_dsr(grid, f"{title}, published setting", published, compared)
    grid.add_section()


def _add_dsr(grid: Table, title: str, each: Sequence[Dsr | None], compared: bool) -> None:
    grid.add_row(Text(title, style="bold"))
    for reading in READINGS:
        rates = [rate_of(dsr, reading) if dsr else None for dsr in each]
        _add_rates(grid, f"  {reading}", rates, compared, better=1)


def _add_rates(
    grid: Table, title: str, rates: Sequence[Rate | None], compared: bool, better: int
) -> None:
    cells = [_rate(rate) for rate in rates]
    if compared:
        before, after = rates
        cells.append(_change(Change(before, after), better) if before and after else Text(NONE))
    grid.add_row(Text(title), *cells)


def _add_costs(grid: Table, costs: Sequence[Cost], compared: bool) -> None:
    grid.add_row(Text("Cost", style="bold"))
    for title, rates in (
        ("  harmless refused", [cost.over_refusal for cost in costs]),
        ("  harmless incoherent", [cost.incoherent for cost in costs]),
        ("  borderline refused", [cost.borderline_refusal for cost in costs]),
        ("  structured refused", [cost.structured_refusal for cost in costs]),
    ):
        _add_rates(grid, title, rates, compared, better=-1)
    blank = [""] if compared else []
    grid.add_row("  KL from base, nats", *(decimal(cost.kl, 2) for cost in costs), *blank)
    ratios = (decimal(cost.perplexity_ratio) for cost in costs)
    grid.add_row("  perplexity, × base", *ratios, *blank)


def _rate(rate: Rate | None) -> Text:
    if rate is None:
        return Text(NONE, style="dim")
    return Text.assemble(percent(rate.rate), (f" ({interval(rate)})", "dim"))


def _change(change: Change, better: int) -> Text:
    """Coloured only where the change goes beyond the intervals; `~` marks where it does not."""
    if not change.clear:
        text = signed(change.points)
        return Text(text if text.startswith("±") else f"~{text}", style="dim")
    good = change.points * better > 0
    return Text(signed(change.points), style="bold green" if good else "bold red")
