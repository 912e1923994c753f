"""What may stand in one table, and what may be added to a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from es2.config import Data, Recipe, dump
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.pipeline.alike import as_cut, check_alike
from es2.pipeline.asked import check_prompts


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A run folder with what comparisons look at."""

    def make(
        name: str, rules: str = "rules-6", push: Any = None, later: str = "", **recipe: Any
    ) -> Path:
        run = tmp_path / name
        (run / "margin").mkdir(parents=True)
        (run / "over_refusal").mkdir()
        (run / "config.yaml").write_text(dump(Recipe(model="m", name=name, **recipe)))
        line = {"judgement": {"version": rules}}
        (run / "attempts.jsonl").write_text(json.dumps(line) + "\n")
        if push is not None:
            (run / "margin" / "push.json").write_text(json.dumps(push))
        if later:
            line = {"judgement": {"version": later}}
            (run / "over_refusal" / "attempts.jsonl").write_text(json.dumps(line) + "\n")
        return run

    return make


def test_runs_that_differ_in_their_defence_and_name_alone_are_alike(
    made: Callable[..., Path],
) -> None:
    pushed = {"norms": [0.1]}
    check_alike(
        [
            made("a", push=pushed, defence={"es2": {}}),
            made("b", push=pushed, defence={"safety_sft": {}}, seed=2, later="rules-6"),
            made("c", defence={"es2": {"lean": -1.0}}, base=False),  # its margin was not measured
        ]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "float16"}, "other dtype than"),
        ({"attacks": {"direct": {"max_new_tokens": 2}}}, "other attacks than"),
        ({"push": {"norms": [0.2]}}, "other pushes or prompts of the safety margin than"),
        ({"rules": "rules-5"}, "verdicts of rules-5, and elsewhere of rules-6"),
        ({"later": "rules-7"}, "verdicts of rules-7, and elsewhere of rules-6"),
    ],
)
def test_runs_that_were_not_made_or_measured_alike_are_not_compared(
    made: Callable[..., Path], changes: dict[str, Any], said: str
) -> None:
    first = made("first", push={"norms": [0.1]})
    with pytest.raises(Es2Error, match=said) as found:
        check_alike([first, made("second", **changes)])
    assert "second" in str(found.value)


def test_the_seed_counts_only_where_files_are_cut_by_it() -> None:
    own = Data(harmful="mine.csv")
    assert as_cut(Recipe(model="m", seed=3)).data.seed is None
    assert as_cut(Recipe(model="m", seed=3, data=own)).data.seed == 3
    assert as_cut(Recipe(model="m", seed=3, data=replace(own, seed=1))).data.seed == 1


def asked(*texts: str, first: int = 1) -> list[Prompt]:
    return [
        Prompt(text, False, None, "", True, str(number), "file")
        for number, text in enumerate(texts, first)
    ]


def test_more_prompts_or_fewer_are_no_others() -> None:
    records = [{"prompt_id": p.id, "prompt": p.text, "kind": "safe"} for p in asked("a", "b")]
    for texts in (("a",), ("a", "b"), ("a", "b", "c")):
        check_prompts(records, asked(*texts), ["safe"] * len(texts), "mine")
    check_prompts([], asked("z"), ["safe"], "mine")


@pytest.mark.parametrize(
    ("prompts", "kind"),
    [
        (asked("a", "changed"), "safe"),
        (asked("a", "b"), "unsafe"),
        (asked("c", "d", first=3), "safe"),
        (asked("b", "c", first=2), "safe"),
    ],
)
def test_other_prompts_under_the_same_name_are_refused(prompts: list[Prompt], kind: str) -> None:
    records = [{"prompt_id": p.id, "prompt": p.text, "kind": "safe"} for p in asked("a", "b")]
    with pytest.raises(Es2Error, match="mine: the folder holds answers to other prompts"):
        check_prompts(records, prompts, [kind] * len(prompts), "mine")
