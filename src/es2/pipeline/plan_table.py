"""A plan as a terminal shows it."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator

from rich.table import Table

from es2.pipeline.plan import ARITHMETIC, BANDWIDTH, LAUNCH, Plan
from es2.progress import output


def show_plan(plan: Plan, json: bool) -> None:
    """Prints a plan on standard output.

    Args:
        plan: the plan.
        json: as an object, and nothing else.
    """
    if json:
        print(jsonlib.dumps(plan.record()))
        return
    console = output()
    console.print(table(plan))
    for line in lines(plan):
        console.print(line, soft_wrap=True, markup=False)
    for warning in plan.warnings:
        console.print(f"does not fit: {warning}", style="yellow", soft_wrap=True, markup=False)


def table(plan: Plan) -> Table:
    """A row for every stage, then the sum."""
    several = f"{plan.devices} x " if plan.devices > 1 else ""
    found = Table(title=f"{plan.shape.name} on {several}{plan.gpu.name}")
    found.add_column("stage", no_wrap=True)
    for heading in ("read", "generated", "with gradient", "FLOPs", "hours", "GB a device"):
        found.add_column(heading, justify="right")
    last = ""
    for row in plan.rows:
        if row.member != last:
            found.add_section()
            found.add_row(f"[bold]{row.member}[/bold]")
            last = row.member
        work = row.work
        found.add_row(
            row.stage,
            *(short(count) for count in (work.read + work.drafted, work.written, work.graded)),
            f"{row.flops:.1e}",
            hours(row.hours),
            f"{row.memory / plan.devices / 1e9:.1f}",
        )
    found.add_section()
    work = plan.whole
    found.add_row(
        "in all",
        *(short(count) for count in (work.read + work.drafted, work.written, work.graded)),
        f"{plan.flops:.1e}",
        hours(plan.hours),
        f"{plan.memory / 1e9:.1f}",
    )
    return found


def lines(plan: Plan) -> Iterator[str]:
    """What the table rests on."""
    shape = plan.shape
    yield (
        f"{shape.parameters / 1e9:.3f} billion parameters, {shape.layers} layers, "
        f"{plan.bits} bits a weight"
    )
    yield (
        f"a prompt has about {plan.lengths.prompt:.0f} tokens and {plan.lengths.head:.0f} + "
        f"{plan.lengths.tail:.0f} of template, by {plan.counted}"
    )
    yield (
        f"an estimate, meant to be right within a factor of about two if nothing ends early; assumed, "
        f"not measured: {ARITHMETIC:.0%} of the "
        f"GPU's arithmetic, {BANDWIDTH:.0%} of its bandwidth, at least {LAUNCH * 1000:.1f} ms a "
        "layer and pass; attention's quadratic term is left out"
    )
    if plan.devices > 1:
        yield (
            "layers spread over devices work one after the other: more devices give memory, not "
            "speed"
        )
    yield from plan.notes


def short(count: float) -> str:
    """A count of tokens in three digits: 950, 12.3k, 4.56M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"


def hours(time: float) -> str:
    """Hours, to a hundredth where they are few."""
    if 0 < time < 0.01:
        return "< 0.01"
    return f"{time:.1f}" if time >= 0.95 else f"{time:.2f}"
