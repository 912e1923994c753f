"""Every comparison of a defended model with the base, as one family: what holds of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from es2.report.formats import name
from es2.results.capability import CapabilityResults
from es2.results.multiple import chance_note, holm
from es2.results.over_refusal import OverRefusal
from es2.results.paired import Difference
from es2.results.schema import Results


@dataclass(frozen=True)
class Comparison:
    """One difference from the base.

    Attributes:
        model: the defended model.
        what: what was compared.
        difference: prompt by prompt.
        adjusted: its p-value by Holm's correction for all comparisons in the report.
    """

    model: str
    what: str
    difference: Difference
    adjusted: float


def comparisons(
    results: Results, refusal: OverRefusal | None, capability: CapabilityResults | None
) -> list[Comparison]:
    """All of them, attacks first."""
    found: dict[tuple[str, str], Difference] = {}
    for model, measured in results.defences.items():
        for key, difference in measured.changes.items():
            found[model, _words(key, measured.attacks)] = difference
    for model, sets in (refusal.changes if refusal else {}).items():
        for of, halves in sets.items():
            for half, measures in halves.items():
                found[model, f"{name(of)}, {half} prompts declined"] = measures["declined"]
    for task, result in (capability.benchmarks if capability else {}).items():
        for model, difference in result.differences.items():
            found[model, f"{name(task)}, accuracy"] = difference
    adjusted = holm({"\n".join(key): of.p for key, of in found.items()})
    return [
        Comparison(model, what, difference, adjusted[f"{model}\n{what}"])
        for (model, what), difference in found.items()
    ]


def counted(found: Sequence[Comparison]) -> str:
    """How many comparisons there are, and how many chance alone would pass; empty for none."""
    p_values = {f"{one.model}\n{one.what}": one.difference.p for one in found}
    return chance_note(p_values) if found else ""


def _words(key: str, attacks: Mapping[str, object]) -> str:
    """Such as `SCAV, published settings, judged DSR`, for a key of `DefenceResult.changes`."""
    attack, _, rest = key.partition(" ")
    if attack not in attacks:
        kind, _, what = key.partition(" ")
        return f"{kind} prompts {what}"
    where = "published settings, " if rest.startswith("published") else ""
    return f"{name(attack)}, {where}{rest.removeprefix('published ')} DSR"
