"""Differences from the base, prompt by prompt, from the records of attempts."""

from __future__ import annotations

from typing import Any

import pytest

from es2.results.changes import changes
from es2.results.paired import paired_difference


def tries(
    outcomes: dict[str, str], attack: str = "scav", setting: str = "p0=0.1", kind: str = "attack"
) -> list[dict[str, Any]]:
    """One record a letter: Refused (with a phrase), incoherent, complied."""
    words = {"R": "refused", "i": "incoherent", "c": "complied"}
    return [
        {
            "kind": kind,
            "attack": attack,
            "setting": setting,
            "prompt_id": prompt,
            "judgement": {"verdict": words[letter], "keyword_refused": letter == "R"},
        }
        for prompt, letter in outcomes.items()
    ]


def prompts(letters: str) -> dict[str, str]:
    return {f"p{place}": letter for place, letter in enumerate(letters)}


def test_each_reading_is_compared_prompt_by_prompt() -> None:
    found = changes(tries(prompts("ccRRcc")), tries(prompts("RiRcRR")), {})
    assert found["scav keyword"] == paired_difference([0, 0, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1])
    assert found["scav judged"] == paired_difference([0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1])
    assert "scav published keyword" not in found


def test_each_model_is_met_at_its_own_weakest_setting() -> None:
    before = tries(prompts("RRRc")) + tries(prompts("Rccc"), setting="p0=0.01")
    after = tries(prompts("RRcc")) + tries(prompts("RRRR"), setting="p0=0.01")
    found = changes(before, after, {"scav": ["p0=0.01"]})
    assert found["scav judged"].change == pytest.approx(0.25)
    assert found["scav published judged"].change == pytest.approx(0.75)


def test_only_prompts_and_attacks_that_both_met_are_compared() -> None:
    before = tries(prompts("ccc"))
    after = tries(prompts("RRRRR")) + tries(prompts("RRR"), attack="gcg")
    found = changes(before, after, {})
    assert found["scav judged"].n == 3
    assert not [name for name in found if name.startswith("gcg")]


def test_costs_are_compared_as_well() -> None:
    before = tries(prompts("ccci"), "none", "", "harmless") + tries(
        prompts("cR"), "none", "", "borderline"
    )
    before += tries(prompts("cccc"), "none", "", "structured")
    after = tries(prompts("Rcii"), "none", "", "harmless") + tries(
        prompts("RR"), "none", "", "borderline"
    )
    after += tries(prompts("RRRc"), "none", "", "structured")
    found = changes(before, after, {})
    assert found["harmless refused"].change == pytest.approx(0.25)
    assert found["harmless incoherent"].change == pytest.approx(0.25)
    assert found["borderline refused"].change == pytest.approx(0.5)
    assert found["structured refused"].change == pytest.approx(0.75)


def test_nothing_in_common_gives_nothing() -> None:
    assert changes([], tries(prompts("cc")), {}) == {}
