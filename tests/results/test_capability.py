"""From answers to rates: subjects, unparsed answers, chance, and pairs."""

from __future__ import annotations

from typing import Any

import pytest

from es2.errors import Es2Error
from es2.results.capability import benchmark_result
from es2.results.paired import paired_difference
from es2.results.rates import wilson

BASE = [1, 1, 0, 0, 1, 0, 1, 1]
DEFENDED = [1, 0, 0, 0, 1, 1, 0, 0]


def answers(model: str, correct: list[int], **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "task": "boats",
            "index": index,
            "item": f"hash {index}",
            "subject": "sailing" if index < 2 else "rowing",
            "metric": "acc",
            "shots": 0,
            "correct": bool(value),
            "choice": "A",
            "loglikelihoods": [-1.0, -2.0] if index % 2 else [-1.0, -2.0, -3.0, -4.0],
            "unparsed": None,
        }
        | more
        for index, value in enumerate(correct)
    ]


def test_accuracy_is_in_all_and_by_subject_with_wilsons_interval() -> None:
    score = benchmark_result(answers("model", BASE)).models["model"]
    assert score.accuracy == wilson(5, 8)
    assert score.subjects == {"sailing": wilson(2, 2), "rowing": wilson(3, 6)}
    assert score.unparsed is None


def test_chance_is_that_of_the_choices_there_are() -> None:
    assert benchmark_result(answers("model", BASE)).chance == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert benchmark_result(answers("model", BASE, loglikelihoods=None)).chance is None


def test_answers_are_paired_by_item_whatever_their_order() -> None:
    result = benchmark_result([*answers("base", BASE), *answers("defended", DEFENDED)[::-1]])
    assert result.differences == {"defended": paired_difference(BASE, DEFENDED)}


def test_one_model_alone_has_no_difference() -> None:
    assert benchmark_result(answers("model", BASE)).differences == {}


@pytest.mark.parametrize("change", [{"item": "other"}, {"index": 99}])
def test_different_questions_make_no_pairs(change: dict[str, Any]) -> None:
    other = answers("defended", DEFENDED)
    other[3] |= change
    with pytest.raises(Es2Error, match="not asked the same questions"):
        benchmark_result([*answers("base", BASE), *other])


def test_unparsed_answers_have_a_share_of_their_own() -> None:
    some = answers("model", BASE, loglikelihoods=None, unparsed=False)
    some[2]["unparsed"] = True
    score = benchmark_result(some).models["model"]
    assert score.unparsed == wilson(1, 8) and score.accuracy == wilson(5, 8)


def test_an_answer_measured_again_counts_once() -> None:
    result = benchmark_result([*answers("model", BASE), *answers("model", BASE)[:3]])
    assert result.models["model"].accuracy.n == 8


def test_a_damaged_record_is_told() -> None:
    broken = answers("model", BASE)
    del broken[1]["correct"]
    with pytest.raises(Es2Error, match="damaged"):
        benchmark_result(broken)
