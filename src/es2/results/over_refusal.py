"""Rates of refusal on over-refusal sets, half by half and category by category, and their change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from es2.errors import Es2Error
from es2.judges.partial import ANSWERS, Answer
from es2.results.paired import Difference, paired_difference
from es2.results.rates import Rate, share_of, wilson
from es2.results.schema import Record

HalfName = Literal["safe", "unsafe"]
HALVES: tuple[HalfName, ...] = ("safe", "unsafe")

Measure = Literal["full refusal", "partial refusal", "full compliance", "incoherent", "declined"]
"""The four kinds of answer, and full and partial refusals together."""

_MEANS: dict[Measure, tuple[Answer, ...]] = {
    **{answer: (answer,) for answer in ANSWERS},
    "declined": ("full refusal", "partial refusal"),
}


class Counted(Record):
    """Answers to a group of prompts.

    Attributes:
        n: prompts.
        counts: how many answers of each kind; they add up to n.
        rates: the share of each measure with its 95 % Wilson interval.
    """

    n: int
    counts: dict[Answer, int]
    rates: dict[Measure, Rate]


class Half(Counted):
    """Answers to a half of a set; `categories` are the set's own words for its groups."""

    categories: dict[str, Counted] = Field(default_factory=dict)


class OverRefusal(Record):
    """What all models did on all sets.

    Attributes:
        models: by the model's name, the set's name and the half.
        changes: from the base to every other model, on the prompts that both answered: by the model's
            name, the set's name, the half and the measure.
    """

    models: dict[str, dict[str, dict[HalfName, Half]]]
    changes: dict[str, dict[str, dict[HalfName, dict[Measure, Difference]]]]


def over_refusal(records: Iterable[Mapping[str, Any]], base: str = "base") -> OverRefusal:
    """From the records of single answers to rates.

    Of two records of the same answer the later counts.

    Args:
        records: as read from `attempts.jsonl`; those of kinds other than safe and unsafe are left out.
        base: the undefended model's name in them.

    Raises:
        Es2Error: if a record lacks a field.
    """
    grouped: dict[str, dict[str, dict[HalfName, dict[str, Mapping[str, Any]]]]] = {}
    try:
        for record in records:
            if record["kind"] in HALVES:
                sets = grouped.setdefault(record["defence"], {})
                halves = sets.setdefault(record["setting"], {})
                halves.setdefault(record["kind"], {})[record["prompt_id"]] = record["details"]
        return OverRefusal(
            models=_each(grouped, _half),
            changes={
                name: {
                    of: {
                        half: _change(before, after)
                        for half, after in halves.items()
                        if (before := grouped[base].get(of, {}).get(half))
                        and before.keys() & after.keys()
                    }
                    for of, halves in sets.items()
                }
                for name, sets in grouped.items()
                if name != base and base in grouped
            },
        )
    except (KeyError, TypeError) as error:
        raise Es2Error(
            f"attempts.jsonl: a record is damaged or of another version ({error!r}); "
            "measure over-refusal again"
        ) from error


def pooled(groups: Iterable[Counted], measure: Measure) -> Rate | None:
    """A measure's share of the answers of several groups together; None without answers."""
    listed = list(groups)
    asked = sum(group.n for group in listed)
    found = sum(group.counts[answer] for group in listed for answer in _MEANS[measure])
    return wilson(found, asked) if asked else None


def _each(
    grouped: Mapping[str, Mapping[str, Mapping[HalfName, Any]]], function: Callable[[Any], Half]
) -> dict[str, dict[str, dict[HalfName, Half]]]:
    return {
        name: {
            of: {half: function(halves[half]) for half in HALVES if half in halves}
            for of, halves in sets.items()
        }
        for name, sets in grouped.items()
    }


def _half(answers: Mapping[str, Mapping[str, Any]]) -> Half:
    categories: dict[str, list[str]] = {}
    for details in answers.values():
        if details["category"]:
            categories.setdefault(details["category"], []).append(details["answer"])
    return Half(
        **_counted([details["answer"] for details in answers.values()]).model_dump(),
        categories={name: _counted(of) for name, of in categories.items()},
    )


def _counted(answers: Sequence[str]) -> Counted:
    return Counted(
        n=len(answers),
        counts={answer: answers.count(answer) for answer in ANSWERS},
        rates={m: share_of(a in kinds for a in answers) for m, kinds in _MEANS.items()},
    )


def _change(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> dict[Measure, Difference]:
    shared = [prompt for prompt in before if prompt in after]
    old, new = ([of[prompt]["answer"] for prompt in shared] for of in (before, after))
    return {
        measure: paired_difference([a in kinds for a in old], [a in kinds for a in new])
        for measure, kinds in _MEANS.items()
    }
