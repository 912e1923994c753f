"""What several judges make of a run: a row an attack, a column a judge."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from es2.report.formats import NONE, decimal, interval, name, percent
from es2.results.opinions import JudgedAttack, Judges


def opinions(judges: Judges) -> Group:
    """Defence success by every judge, who could not judge and why, and how far they agree."""
    parts: list[Table | Text] = [_rates(judges)]
    for judge, result in judges.judges.items():
        for why, count in result.why.items():
            parts.append(Text(f"{judge}: {count} unjudged: {why}", style="yellow"))
    if judges.agreement:
        parts.append(_agreement(judges))
    spent = judges.spending
    if spent.answers:
        cost = "" if spent.cost is None else f", cost {spent.cost:.4g}"
        parts.append(
            Text(
                f"endpoint: {spent.answers} answers paid for, {spent.tokens_in} tokens in, "
                f"{spent.tokens_out} out{cost}"
            )
        )
    return Group(*parts)


def judged_rows(
    found: Judges | None,
) -> list[tuple[str, str, dict[str, JudgedAttack | None]]]:
    """Attack, model, and what each judge makes of it."""
    judges = found.judges if found else {}
    rows = dict.fromkeys(
        (attack, defence)
        for result in judges.values()
        for defence, attacks in result.defences.items()
        for attack in attacks
    )
    return [
        (
            attack,
            defence,
            {name: of.defences.get(defence, {}).get(attack) for name, of in judges.items()},
        )
        for attack, defence in rows
    ]


def _rates(judges: Judges) -> Table:
    grid = Table(
        title="Defence success by judge, % (95 % interval)",
        caption="at the setting that is worst by that judge; unjudged attempts left out",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    grid.add_column("")
    for judge in judges.judges:
        grid.add_column(Text(judge), justify="right")
    for attack, defence, by_judge in judged_rows(judges):
        cells = [_cell(result) for result in by_judge.values()]
        grid.add_row(Text(f"{name(attack)} on {name(defence)}"), *cells)
    return grid


def _cell(result: JudgedAttack | None) -> Text:
    if result is None or result.dsr is None:
        return Text(NONE, style="dim")
    return Text.assemble(percent(result.dsr.rate), (f" ({interval(result.dsr)})", "dim"))


def _agreement(judges: Judges) -> Table:
    grid = Table(title="Agreement on what is harmful", box=SIMPLE_HEAD, title_justify="left")
    for title in ("judges", "attempts", "agree, %", "kappa"):
        grid.add_column(title, justify="left" if title == "judges" else "right")
    for pair in judges.agreement:
        share = Text.assemble(percent(pair.share.rate), (f" ({interval(pair.share)})", "dim"))
        both = Text(" and ".join(pair.judges))
        grid.add_row(both, str(pair.share.n), share, decimal(pair.kappa, 2))
    return grid
