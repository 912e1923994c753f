"""`capability.json`: what models know, task by task, and how the defence changed it.

All shares are fractions of 1. `capability.jsonl` holds the answers behind it, one a line; those of
two models to the same item are compared as a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from es2.errors import Es2Error
from es2.results.paired import Difference, paired_difference
from es2.results.rates import Rate, share_of
from es2.results.schema import Record

CAPABILITY = "capability.json"
ANSWERS = "capability.jsonl"

Answer = Mapping[str, Any]
"""One line of `capability.jsonl`."""


class Score(Record):
    """One model on one benchmark.

    Attributes:
        accuracy: share of items answered correctly; an unparsed answer is not correct.
        unparsed: share of written answers in which no choice was found; null where choices are
            scored by likelihood, or the task does not tell.
        subjects: accuracy within each subject; empty where there is one alone.
    """

    accuracy: Rate
    unparsed: Rate | None = None
    subjects: dict[str, Rate] = Field(default_factory=dict)


class BenchmarkResult(Record):
    """One benchmark.

    Attributes:
        metric: the harness's name of what counts as correct.
        shots: solved examples before every question.
        chance: what blind guessing among the choices would reach; null where answers are written.
        models: each model's score, by its name.
        differences: every other model's accuracy less the base's, item by item, by the model's name;
            empty if no model is called `base`.
    """

    metric: str
    shots: int
    chance: float | None
    models: dict[str, Score]
    differences: dict[str, Difference] = Field(default_factory=dict)


class CapabilityResults(Record):
    """The whole of `capability.json`.

    Attributes:
        harness: the version of lm-evaluation-harness.
        models: what was measured, by name; the undefended is called `base`.
        settings: what else was asked for.
        benchmarks: by name; only those that are finished for all models.
    """

    schema_version: Literal[1] = 1
    harness: str
    models: dict[str, str]
    settings: dict[str, Any]
    benchmarks: dict[str, BenchmarkResult] = Field(default_factory=dict)


def benchmarks(answers: Iterable[Answer]) -> dict[str, BenchmarkResult]:
    """Every benchmark that there are answers to, by its name."""
    answers = list(answers)
    names = dict.fromkeys(answer["benchmark"] for answer in answers)
    return {name: benchmark_result(a for a in answers if a["benchmark"] == name) for name in names}


def benchmark_result(answers: Iterable[Answer]) -> BenchmarkResult:
    """All models' answers to one benchmark, as rates and their paired difference.

    Raises:
        Es2Error: if two models were not asked the same questions, or a record lacks a field.
    """
    try:
        by_model: dict[str, dict[tuple[str, int], Answer]] = {}
        for answer in answers:
            of_model = by_model.setdefault(answer["model"], {})
            of_model[answer["task"], answer["index"]] = answer
        first = next(iter(by_model.values()))
        some = next(iter(first.values()))
        return BenchmarkResult(
            metric=some["metric"],
            shots=some["shots"],
            chance=_chance(list(first.values())),
            models={model: _score(list(of.values())) for model, of in by_model.items()},
            differences=_differences(by_model),
        )
    except (KeyError, TypeError) as error:
        raise Es2Error(
            f"{ANSWERS}: a record is damaged or of another version ({error!r}); measure again into "
            "another folder"
        ) from error


def _score(answers: Sequence[Answer]) -> Score:
    subjects: dict[str, list[bool]] = {}
    for answer in answers:
        subjects.setdefault(answer["subject"], []).append(answer["correct"])
    parsed = [answer["unparsed"] for answer in answers if answer["unparsed"] is not None]
    return Score(
        accuracy=share_of(answer["correct"] for answer in answers),
        unparsed=share_of(parsed) if parsed else None,
        subjects={name: share_of(correct) for name, correct in subjects.items()}
        if len(subjects) > 1
        else {},
    )


def _chance(answers: Sequence[Answer]) -> float | None:
    counts = [len(answer["loglikelihoods"] or ()) for answer in answers]
    return sum(1 / count for count in counts) / len(counts) if all(counts) else None


def _differences(
    by_model: Mapping[str, Mapping[tuple[str, int], Answer]],
) -> dict[str, Difference]:
    if (base := by_model.get("base")) is None:
        return {}
    return {name: _difference(base, of) for name, of in by_model.items() if name != "base"}


def _difference(
    base: Mapping[tuple[str, int], Answer], defended: Mapping[tuple[str, int], Answer]
) -> Difference:
    order = sorted(base)
    if order != sorted(defended) or any(base[k]["item"] != defended[k]["item"] for k in order):
        raise Es2Error(
            f"{ANSWERS}: base and defended were not asked the same questions in the same form, so "
            "they make no pairs; measure both again into another folder"
        )
    return paired_difference(
        [float(base[key]["correct"]) for key in order],
        [float(defended[key]["correct"]) for key in order],
    )
