"""What `es2 evaluate` adds to a report: over-refusal, capability, drift and leaks, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from es2.results.over_refusal import HALVES, Counted, HalfName, OverRefusal
from es2.results.rates import Rate

SPANS = {
    "prompt": "the prompts' own",
    "first": "first of the answer",
    "opening": "first eight of the answer",
    "response": "the whole answer",
}


@dataclass(frozen=True)
class CategoryRow:
    """One category of one half: the share declined of each model."""

    category: str
    half: HalfName
    declined: Mapping[str, Rate]
    n: int


@dataclass(frozen=True)
class RefusalSet:
    """One over-refusal set: each half's counts by model, and its categories."""

    name: str
    models: list[str]
    halves: Mapping[HalfName, Mapping[str, Counted]]
    categories: list[CategoryRow]

    @property
    def unsafe(self) -> bool:
        """Whether it has a half that should be declined."""
        return "unsafe" in self.halves


def refusal_sets(found: OverRefusal | None) -> list[RefusalSet]:
    """Set by set what the models declined."""
    models = dict(found.models) if found else {}
    names = dict.fromkeys(name for sets in models.values() for name in sets)
    return [
        _set(name, {model: of[name] for model, of in models.items() if name in of})
        for name in names
    ]


def _set(name: str, by_model: Mapping[str, Mapping[HalfName, Any]]) -> RefusalSet:
    halves: dict[HalfName, dict[str, Counted]] = {}
    rows: list[CategoryRow] = []
    for half in HALVES:
        known = {model: of[half] for model, of in by_model.items() if half in of}
        if not known:
            continue
        halves[half] = dict(known)
        for category in dict.fromkeys(c for of in known.values() for c in of.categories):
            counts = {
                m: of.categories[category] for m, of in known.items() if category in of.categories
            }
            declined = {model: counted.rates["declined"] for model, counted in counts.items()}
            rows.append(CategoryRow(category, half, declined, max(c.n for c in counts.values())))
    return RefusalSet(name, list(by_model), halves, rows)


def drift_rows(drift: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The spans that were measured, in the order of the text."""
    return [
        (label, drift[key]) for key, label in SPANS.items() if isinstance(drift.get(key), Mapping)
    ]


def leaks(run: Mapping[str, Any]) -> list[str] | None:
    """What was found of prompts both measured and fitted on; None if nobody looked."""
    found = run.get("overlap")
    if not isinstance(found, list):
        return None
    return [
        f"{leak.get('count')} prompts of {leak.get('a')} are also in {leak.get('b')} "
        f"({leak.get('kind')})"
        for leak in found
    ]
