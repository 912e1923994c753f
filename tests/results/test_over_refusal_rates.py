"""Rates of an over-refusal set, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from es2.errors import Es2Error
from es2.results.over_refusal import OverRefusal, over_refusal
from es2.results.paired import paired_difference
from es2.results.rates import wilson

FULL, PARTIAL, COMPLIED = "full refusal", "partial refusal", "full compliance"


def record(defence: str, kind: str, prompt: int, answer: str, category: str = "") -> dict[str, Any]:
    details = {"answer": answer, "category": category}
    return {
        "defence": defence,
        "kind": kind,
        "setting": "set",
        "prompt_id": str(prompt),
        "details": details,
    }


RECORDS = [
    *(record("base", "safe", i, COMPLIED, "homonyms") for i in range(8)),
    record("base", "safe", 8, PARTIAL, "privacy"),
    *(record("base", "unsafe", i, FULL) for i in range(4)),
    *(record("es2", "safe", i, COMPLIED, "homonyms") for i in range(5)),
    *(record("es2", "safe", i, FULL, "homonyms") for i in range(5, 8)),
    record("es2", "safe", 8, "incoherent", "privacy"),
    *(record("es2", "unsafe", i, FULL) for i in range(4)),
]


def test_every_half_and_category_is_counted() -> None:
    found = over_refusal(RECORDS)
    safe = found.models["es2"]["set"]["safe"]
    assert safe.counts == {FULL: 3, PARTIAL: 0, COMPLIED: 5, "incoherent": 1}
    assert safe.rates[FULL] == wilson(3, 9)
    assert found.models["base"]["set"]["safe"].rates["declined"] == wilson(1, 9)
    assert safe.categories["homonyms"].counts[FULL] == 3
    assert safe.categories["privacy"].rates["incoherent"] == wilson(1, 1)
    assert found.models["es2"]["set"]["unsafe"].categories == {}


def test_the_change_is_paired_by_prompt() -> None:
    change = over_refusal(reversed(RECORDS)).changes["es2"]["set"]["safe"]
    assert change[FULL] == paired_difference([0] * 9, [0] * 6 + [1] * 3)
    assert change["declined"] == paired_difference([1] + [0] * 8, [0] * 6 + [1] * 3)


def test_prompts_that_one_model_did_not_answer_make_no_pair() -> None:
    records = [record("base", "safe", 1, FULL), record("base", "safe", 2, FULL)]
    records += [record("es2", "safe", 2, COMPLIED), record("es2", "unsafe", 3, FULL)]
    changes = over_refusal(records).changes["es2"]["set"]
    assert changes["safe"][FULL].n == 1
    assert "unsafe" not in changes


def test_without_a_base_there_is_no_change() -> None:
    assert over_refusal([record("es2", "safe", 1, FULL)]).changes == {}


def test_the_later_of_two_records_counts_and_other_kinds_do_not() -> None:
    records = [record("base", "safe", 1, FULL), record("base", "safe", 1, COMPLIED)]
    records.append({"defence": "base", "kind": "attack"})
    found = over_refusal(records).models["base"]["set"]["safe"]
    assert (found.n, found.counts[COMPLIED]) == (1, 1)


def test_results_survive_json() -> None:
    found = over_refusal(RECORDS)
    assert OverRefusal.model_validate_json(found.model_dump_json()) == found


def test_a_damaged_record_is_named() -> None:
    with pytest.raises(Es2Error, match="damaged"):
        over_refusal([{"kind": "safe", "defence": "base"}])
