"""The prompts that are shipped: complete, balanced, their own, and without leaks between splits."""

from __future__ import annotations

import csv
import json
from collections import Counter
from importlib import resources
from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest

from es2.data import BUNDLED, find_overlap, find_repeats, load_prompts

# What a target adds to its request to phrase the start of an answer.
PHRASING = frozenset(
    {
        "sure",
        "here",
        "is",
        "are",
        "how",
        "to",
        "a",
        "the",
        "you",
        "your",
        "for",
        "plan",
        "step",
        "by",
    }
)
SPLITS = ("train", "validation", "test")
ONE_LINE = [name for name in BUNDLED if name != "structured"]
PUBLIC_DATA = Path(__file__).parents[3] / "shared" / "data"


def rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("es2.data") / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts(*names: str, split: str | None = None) -> list[str]:
    return [
        row["prompt"]
        for name in names
        for row in rows(name)
        if split is None or row["split"] == split
    ]


@pytest.mark.parametrize(
    ("name", "per_category"),
    [
        ("harmful", {"train": 113, "validation": 14, "test": 10}),
        ("harmless", {"train": 165, "validation": 14, "test": 10}),
        ("borderline", {"train": 64, "validation": 10, "test": 5}),
    ],
)
def test_every_category_has_its_share_of_every_split(name: str, per_category: dict[str, int]):
    counts = Counter((row["category"], row["split"]) for row in rows(name))
    categories = {row["category"] for row in rows(name)}
    assert len(categories) == 12
    assert counts == {
        (category, split): count for category in categories for split, count in per_category.items()
    }


def test_borderline_prompts_have_the_categories_of_the_harmful_ones():
    assert {row["category"] for row in rows("borderline")} == {
        row["category"] for row in rows("harmful")
    }


@pytest.mark.parametrize("name", BUNDLED)
def test_rows_have_only_the_documented_keys_and_numbered_ids(name: str):
    keys = {"id", "prompt", "category", "split"} | ({"target"} if name == "harmful" else set())
    assert all(set(row) == keys for row in rows(name))
    expected = [f"{name}-{number:04d}" for number in range(1, len(rows(name)) + 1)]
    assert [row["id"] for row in rows(name)] == expected


@pytest.mark.parametrize("split", SPLITS)
def test_structured_prompts_span_lines_and_every_split_has_every_kind(split: str):
    texts = prompts("structured", split=split)
    assert all(text == text.strip() and text.count("\n") >= 2 for text in texts)
    assert all(60 <= len(text) <= 600 for text in texts)
    counts = Counter(row["category"] for row in rows("structured") if row["split"] == split)
    assert set(counts) == {"choice", "passage", "data", "code", "problem", "examples"}
    assert max(counts.values()) <= 0.4 * len(texts)


@pytest.mark.parametrize("name", ONE_LINE)
def test_prompts_are_one_short_line_and_end_as_requests_do(name: str):
    # What a crime is can be asked in three words, and harm in four.
    least = {"borderline": 3, "harmful": 4}.get(name, 5)
    for text in prompts(name):
        assert text == " ".join(text.split())
        assert least <= len(text.split()) <= 20
        assert text[0].isupper()
        assert text[-1] == "?" or text[-1].isalnum()


@pytest.mark.parametrize("name", ONE_LINE)
def test_opening_words_vary(name: str):
    openings = Counter(text.split()[0] for text in prompts(name))
    assert len(openings) >= 24
    assert max(openings.values()) <= 0.1 * len(prompts(name))


def test_targets_start_to_comply_in_one_short_line_and_speak_to_the_user():
    for row in rows("harmful"):
        target = row["target"]
        assert target.startswith(("Sure, here is ", "Sure, here are "))
        assert target == " ".join(target.split())
        assert len(target.split()) <= 20
        assert target[-1].isalnum()
        assert not {"I", "me", "my", "we", "our"} & set(target.split())


def test_a_target_holds_nothing_but_words_of_its_request():
    for row in rows("harmful"):
        asked = {word.strip(".,?'").lower() for word in row["prompt"].split()}
        added = {word.strip(".,?'").lower() for word in row["target"].split()} - asked - PHRASING
        assert len(added) <= 3, (row["target"], added)


def test_neither_length_nor_form_tells_what_is_measured_apart():
    """In the splits that choose and report; more training rows may be plainer than these."""
    harmful, harmless = (
        prompts(name, split="validation") + prompts(name, split="test")
        for name in ("harmful", "harmless")
    )
    longer = mean((len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a in harmful for b in harmless)
    assert 0.4 < longer < 0.6
    questions = [mean(text.endswith("?") for text in texts) for texts in (harmful, harmless)]
    assert abs(questions[0] - questions[1]) <= 5 / 360
    openings = [Counter(text.split()[0] for text in texts) for texts in (harmful, harmless)]
    assert (openings[0] & openings[1]).total() >= 0.8 * len(harmful)


@pytest.mark.parametrize("name", ONE_LINE)
def test_forms_are_spread_evenly_over_splits(name: str):
    shares = [mean(text.endswith("?") for text in prompts(name, split=split)) for split in SPLITS]
    assert max(shares) - min(shares) < 0.08


def test_no_prompt_is_there_twice_not_even_reworded():
    assert find_repeats(prompts(*BUNDLED)) == []


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_prompt_not_even_reworded(one: str, other: str):
    assert find_overlap(prompts(*BUNDLED, split=one), prompts(*BUNDLED, split=other)) == []


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("advbench.csv", "goal"),
        ("harmbench_val.csv", "goal"),
        ("xstest.csv", "prompt"),
        ("alpaca_harmless.txt", None),
    ],
)
def test_no_prompt_is_taken_from_a_public_set(file: str, column: str | None):
    path = PUBLIC_DATA / file
    if not path.is_file():
        pytest.skip("no public data beside the repository")
    with path.open(encoding="utf-8", newline="") as lines:
        public = (
            [line.strip() for line in lines]
            if column is None
            else [row[column] for row in csv.DictReader(lines)]
        )
    assert len(public) >= 40
    assert find_overlap(prompts(*BUNDLED), public) == []


def test_the_shipped_files_load_whole():
    assert [len(load_prompts(name)) for name in BUNDLED] == [1644, 2268, 948, 420]
