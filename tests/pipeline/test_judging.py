"""Several judges over a run: nothing is judged twice, and nothing is lost to a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from es2.attacks.base import Attempt
from es2.attacks.budget import Budget
from es2.errors import Es2Error
from es2.judges import Judge, Opinion, Reading, Refusal, Rules
from es2.judges.base import VERSION, Judgement, no_opinion, opinion
from es2.judges.coherence import CalibratedJudge
from es2.pipeline import judging
from es2.pipeline.judging import judge_run
from es2.results.answers import AnswerFile
from es2.results.opinions import JUDGES_FILE, VERDICTS_FILE, Judges
from es2.results.store import append_attempts, attempt_record, read_model, read_records


@dataclass
class Recorder:
    """Finds harmful what says so; keeps what it was asked."""

    name: str = "recorder"
    version: str = "1"
    down: bool = False
    dies_after: int | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Opinion]:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise KeyboardInterrupt
        self.asked += zip(prompts, completions, strict=True)
        if self.down:
            return [no_opinion(self, "gone")] * len(completions)
        return [opinion(self, Reading("harm" in c, None), "said") for c in completions]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two settings on two prompts, and an answer to a harmless prompt."""
    records: list[dict[str, Any]] = []
    texts = {"x": ["harm", "fine"], "y": ["fine", "fine"]}
    for setting, completions in texts.items():
        for prompt, text in zip("pq", completions, strict=True):
            made = Attempt("a", setting, "prompt text", prompt, f"do {prompt}", text, Budget())
            judgement = Judgement("complied" if text == "harm" else "refused", False, 2.0, 0.0, 0.5)
            records.append(attempt_record("es2", "attack", made, judgement))
    harmless = Attempt("direct", "", "prompt text", "h", "bread?", "Knead.", Budget())
    records.append(
        attempt_record("es2", "harmless", harmless, Judgement("complied", False, 2, 0, 1))
    )
    append_attempts(tmp_path, records)
    return tmp_path


def judged(run: Path, *judges: Judge, limit: int | None = None) -> Judges:
    return judge_run(run, judges, AnswerFile(run), limit)


def test_every_attack_attempt_is_judged_and_summed_up(run: Path) -> None:
    found = judged(run, Recorder(), Refusal())
    assert found == read_model(run / JUDGES_FILE, Judges)
    attack = found.judges["recorder"].defences["es2"]["a"]
    assert attack.setting == "x" and attack.dsr and attack.dsr.rate == 0.5
    assert found.agreement[0].share.n == 4
    lines = read_records(run / VERDICTS_FILE)
    assert len(lines) == 8 and {line["kind"] for line in lines} == {"attack"}
    assert {line["raw"] for line in lines if line["judge"] == "recorder"} == {"said"}


def test_the_same_answer_to_the_same_prompt_is_judged_once(run: Path) -> None:
    judge = Recorder()
    judged(run, judge)
    assert sorted(judge.asked) == [("do p", "fine"), ("do p", "harm"), ("do q", "fine")]


def test_what_was_judged_is_not_judged_again_unless_by_another_version(run: Path) -> None:
    judged(run, Recorder())
    before = (run / VERDICTS_FILE).read_bytes()
    again, newer = Recorder(), Recorder(version="2")
    judged(run, again)
    assert again.asked == [] and (run / VERDICTS_FILE).read_bytes() == before
    judged(run, newer)
    assert len(newer.asked) == 3
    assert (run / VERDICTS_FILE).read_bytes().startswith(before)


def test_a_judge_that_was_gone_is_asked_again_and_noted_once(run: Path) -> None:
    found = judged(run, Recorder(down=True))
    assert found.judges["recorder"].why == {"gone": 4}
    before = (run / VERDICTS_FILE).read_bytes()
    judged(run, Recorder(down=True))
    assert (run / VERDICTS_FILE).read_bytes() == before
    assert judged(run, Recorder()).judges["recorder"].judged == 4


def test_a_kill_loses_one_portion_at_the_most(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_PORTION", 1)
    with pytest.raises(KeyboardInterrupt):
        judged(run, Recorder(dies_after=2))
    later = Recorder()
    found = judged(run, later)
    assert len(later.asked) == 1 and found.judges["recorder"].judged == 4


def test_a_limit_spreads_over_the_run(run: Path) -> None:
    found = judged(run, Recorder(), limit=2)
    settings = found.judges["recorder"].defences["es2"]["a"].settings
    assert {name: s.dsr.n for name, s in settings.items() if s.dsr} == {"x": 1, "y": 1}


def test_the_runs_own_verdicts_are_rules_opinions_and_need_no_model(run: Path) -> None:
    def load() -> CalibratedJudge:
        raise AssertionError("loaded")

    found = judged(run, Rules(load)).judges["rules"]
    assert (found.version, found.judged) == (VERSION, 4)
    assert found.defences["es2"]["a"].dsr and found.defences["es2"]["a"].dsr.rate == 0.5


def test_a_run_without_attempts_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(Es2Error, match="no attempts"):
        judged(tmp_path, Refusal())
