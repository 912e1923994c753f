"""From single opinions to `judges.json`: the attacker's best setting by each judge, and agreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es2.errors import Es2Error
from es2.judges.base import Opinion
from es2.results.opinions import (
    JUDGES_FILE,
    Judges,
    Key,
    Spending,
    attempt_key,
    settled,
    verdict_record,
)
from es2.results.panel import kappa, panel
from es2.results.rates import wilson
from es2.results.store import append_records, read_model, read_records, write_json

NONE = Spending()


def key(prompt: str, setting: str = "", attack: str = "direct", text: str = "Knead it.") -> Key:
    of = {"defence": "es2", "kind": "attack", "attack": attack, "setting": setting}
    return attempt_key({**of, "prompt_id": prompt, "completion": text})


def line(
    at: Key,
    harmful: bool | None,
    judge: str = "a",
    version: str = "1",
    score: float | None = None,
    error: str | None = None,
    raw: str = "",
) -> dict[str, Any]:
    return verdict_record(at, Opinion(judge, version, None, score, raw, error, harmful))


def keys(lines: list[dict[str, Any]]) -> set[Key]:
    return {attempt_key(one) for one in lines}


def test_an_attempt_is_known_by_its_completion_too_and_lines_come_back(tmp_path: Path) -> None:
    assert key("p") != key("p", text="Bake it.")
    assert len(key("p")[-1]) == 16
    assert key("p", text="half \ud83c")
    path = tmp_path / "verdicts.jsonl"
    append_records(path, [line(key("p"), True)])
    append_records(path, [line(key("q"), None, error="gone")])
    assert [attempt_key(one) for one in read_records(path)] == [key("p"), key("q")]


def test_a_judges_dsr_is_that_of_the_setting_worst_by_that_judge() -> None:
    lines = [line(key(f"p{i}", "weak"), i < 1, score=0.25 * i) for i in range(4)]
    lines += [line(key(f"p{i}", "strong"), i < 3, score=1.0) for i in range(4)]
    lines += [line(key(f"p{i}", "weak"), True, judge="b") for i in range(4)]
    lines += [line(key(f"p{i}", "strong"), False, judge="b") for i in range(4)]
    found = panel(lines, keys(lines), NONE)
    a, b = (found.judges[name].defences["es2"]["direct"] for name in "ab")
    assert (a.setting, a.dsr, a.score) == ("strong", wilson(1, 4), 1.0)
    assert a.settings["weak"].dsr == wilson(3, 4) and a.settings["weak"].score == 0.375
    assert (b.setting, b.dsr, b.score) == ("weak", wilson(0, 4), None)


def test_what_could_not_be_judged_is_counted_by_reason_and_in_no_rate() -> None:
    lines = [line(key("p0"), False), line(key("p1"), None, error="gated", raw="")]
    lines += [
        line(key("p2"), None, error="unreadable", raw="hm"),
        line(key("p3"), None, error="gated"),
    ]
    result = panel(lines, keys(lines), NONE).judges["a"]
    assert (result.judged, result.unjudged) == (1, 3)
    assert result.why == {"gated": 2, "unreadable": 1}
    found = result.defences["es2"]["direct"]
    assert found.dsr == wilson(1, 1) and found.unjudged == 3


def test_a_judge_that_read_nothing_has_an_empty_column() -> None:
    lines = [line(key("p"), None, error="gated"), line(key("p"), True, judge="b")]
    found = panel(lines, keys(lines), NONE)
    assert found.judges["a"].defences["es2"]["direct"].dsr is None
    assert found.agreement == []


def test_a_setting_that_could_not_be_judged_is_not_the_worst() -> None:
    lines = [line(key("p", "x"), None, error="gone"), line(key("p", "y"), False)]
    assert panel(lines, keys(lines), NONE).judges["a"].defences["es2"]["direct"].setting == "y"


def test_the_later_line_counts_and_old_completions_do_not() -> None:
    lines = [line(key("p"), None, error="gone"), line(key("p"), True)]
    lines += [line(key("p", text="an older one"), False)]
    result = panel(lines, {key("p")}, NONE).judges["a"]
    assert (result.judged, result.unjudged) == (1, 0)
    assert result.defences["es2"]["direct"].dsr == wilson(0, 1)


def test_versions_of_a_judge_are_not_mixed() -> None:
    lines = [line(key("p"), True, version="1"), line(key("q"), True, version="1")]
    lines += [line(key("p"), False, version="2")]
    latest = panel(lines, keys(lines), NONE).judges["a"]
    assert (latest.version, latest.judged) == ("2", 1)
    wanted = panel(lines, keys(lines), NONE, asked={"a": "1"}).judges["a"]
    assert (wanted.version, wanted.judged) == ("1", 2)


def test_two_judges_agree_over_what_both_could_read() -> None:
    a = [True, True, False, False, True]
    b = [True, False, False, False, None]
    lines = [line(key(f"p{i}"), v) for i, v in enumerate(a)]
    lines += [line(key(f"p{i}"), v, judge="b", error=None) for i, v in enumerate(b)]
    (found,) = panel(lines, keys(lines), NONE).agreement
    assert found.judges == ("a", "b") and found.share == wilson(3, 4)
    # By hand: 3/4 observed; by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2; (3/4 - 1/2) / (1 - 1/2).
    assert found.kappa == pytest.approx(0.5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_kappa_is_agreement_beyond_chance(pairs: list[tuple[bool, bool]]) -> None:
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    ours, theirs = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    chance = ours * theirs + (1 - ours) * (1 - theirs)
    found = kappa(pairs)
    if len({label for pair in pairs for label in pair}) == 1:
        assert found is None
    else:
        assert found == pytest.approx((observed - chance) / (1 - chance))


def test_only_what_put_nothing_out_is_asked_again() -> None:
    assert settled(line(key("p"), True)) and settled(line(key("p"), None, raw="hm", error="x"))
    assert not settled(line(key("p"), None, error="gone"))


def test_judges_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    lines = [line(key("p"), True), line(key("p"), False, judge="b")]
    found = panel(lines, keys(lines), Spending(answers=2, tokens_in=9, tokens_out=3, cost=0.1))
    write_json(tmp_path / JUDGES_FILE, found)
    assert read_model(tmp_path / JUDGES_FILE, Judges) == found


def test_a_damaged_line_is_a_users_error() -> None:
    with pytest.raises(Es2Error, match=r"verdicts\.jsonl"):
        panel([{"judge": "a"}], {key("p")}, NONE)
