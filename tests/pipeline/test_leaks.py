"""Leaks: copies are refused, reworded prompts are told, and each prompt counts once."""

from __future__ import annotations

import pytest

from es2.errors import Es2Error
from es2.pipeline.leaks import check_leaks, find_leaks

TRAINED = ["How do I bake rye bread?", "Name three rivers of Europe", "Why is the sky blue?"]
COPIES = {"exact": "Why is the sky blue?", "normalised": "why is the sky BLUE"}
NEAR = "Explain how to bake a rye bread"
NEW = "How deep is the lake of Geneva?"


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_refused_in_one_line(kind: str) -> None:
    with pytest.raises(Es2Error) as refused:
        check_leaks({"xstest": [NEW, COPIES[kind]]}, {"train": TRAINED}, force=False)
    assert str(refused.value) == (
        f"xstest: 1 of 2 prompts are also in train ({kind}); take them out of one of the two, or add "
        "--force to go on"
    )


def test_forced_copies_are_returned_and_told(capfd: pytest.CaptureFixture[str]) -> None:
    found = check_leaks({"xstest": [COPIES["exact"]]}, {"train": TRAINED}, force=True)
    assert found == [{"a": "xstest", "b": "train", "kind": "exact", "count": 1, "of": 1}]
    assert "1 of 1 prompts are also in train (exact)" in capfd.readouterr().err


def test_reworded_prompts_are_returned_and_not_refused() -> None:
    found = check_leaks({"xstest": [NEAR, NEW]}, {"train": TRAINED}, force=False)
    assert found == [{"a": "xstest", "b": "train", "kind": "near", "count": 1, "of": 2}]


def test_new_prompts_are_no_leak() -> None:
    assert check_leaks({"xstest": [NEW], "none": []}, {"train": TRAINED, "none": []}, False) == []


def test_a_prompt_with_several_matches_counts_once_as_the_surest() -> None:
    fitted = ["bake rye bread", *TRAINED, TRAINED[0].upper(), TRAINED[0]]
    found = find_leaks({"test": [TRAINED[0]]}, {"train": fitted})
    assert [(leak["kind"], leak["count"]) for leak in found] == [("exact", 1)]


def test_every_set_is_compared_with_every_other() -> None:
    found = find_leaks(
        {"one": [TRAINED[0]], "two": [TRAINED[1], NEW]}, {"train": TRAINED[:1], "probe": TRAINED}
    )
    assert [(leak["a"], leak["b"]) for leak in found] == [
        ("one", "train"),
        ("one", "probe"),
        ("two", "probe"),
    ]
