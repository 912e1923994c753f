"""Attacks and costs end as records: none missing, none twice, whatever was there before."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from es2.attacks.base import Attack, Attempt, ThreatModel, Victim
from es2.attacks.budget import Budget
from es2.attacks.direct import Direct
from es2.attacks.gcg import Gcg
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.judges.coherence import CalibratedJudge, Limits
from es2.models.loading import ChatModel
from es2.pipeline import answering
from es2.pipeline.answering import measure_answers
from es2.pipeline.attack import attack as run_attack
from es2.pipeline.attack import attack_model
from es2.results.store import Kind, read_attempts
from small import HARMFUL, HARMLESS

FIT = FitPrompts(HARMFUL[:12], HARMLESS[:12], HARMFUL[12:], HARMLESS[12:])
PROMPTS = [Prompt(t, True, None, "", False, f"p{i}", "test") for i, t in enumerate(HARMFUL[:3])]
Tiny = Callable[[str], ChatModel]


@dataclass(frozen=True)
class Echo:
    """Makes the model say the prompt, under two settings; remembers which were asked for."""

    name: ClassVar[str] = "echo"
    threat: ClassVar[ThreatModel] = "weights"
    published: ClassVar[tuple[str, ...]] = ("b",)
    asked: list[str] = field(default_factory=list)

    def settings(self) -> Sequence[str]:
        return ["a", "b"]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Attempt]]:
        for setting in self.settings():
            if setting not in skip:
                self.asked.append(setting)
                yield [
                    Attempt(
                        self.name,
                        setting,
                        self.threat,
                        p.id,
                        p.text,
                        f"{setting} {p.text}",
                        Budget(),
                    )
                    for p in prompts
                ]


@pytest.fixture
def scene(shared: Tiny) -> tuple[Victim, CalibratedJudge]:
    chat = shared("llama")
    return Victim(chat, FIT), CalibratedJudge(chat, Limits())


def tries(run: Path) -> list[tuple[str, str]]:
    return [(record["setting"], record["prompt_id"]) for record in read_attempts(run)]


EVERY = [(setting, prompt.id) for setting in "ab" for prompt in PROMPTS]


def test_an_attack_needs_no_more_than_the_protocol() -> None:
    assert isinstance(Echo(), Attack)


def test_each_prompt_is_recorded_once_under_each_setting(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path
) -> None:
    victim, judge = scene
    attack_model("es2", victim, judge, Echo(), PROMPTS, tmp_path)
    assert tries(tmp_path) == EVERY
    first = read_attempts(tmp_path)[0]
    assert first["defence"] == "es2" and first["kind"] == "attack"
    assert first["completion"] == f"a {PROMPTS[0].text}"
    assert first["judgement"]["verdict"] in ("refused", "incoherent", "complied")
    again = Echo()
    attack_model("es2", victim, judge, again, PROMPTS, tmp_path)
    assert again.asked == [] and tries(tmp_path) == EVERY


@pytest.mark.parametrize("kept", range(1, 6))
def test_what_a_kill_left_out_is_added_and_nothing_twice(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path, kept: int
) -> None:
    victim, judge = scene
    attack_model("es2", victim, judge, Echo(), PROMPTS, tmp_path)
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    again = Echo()
    attack_model("es2", victim, judge, again, PROMPTS, tmp_path)
    assert tries(tmp_path) == EVERY
    assert again.asked == (["a", "b"] if kept < 3 else ["b"])


@dataclass(frozen=True)
class Killed(Gcg):
    """Is killed in its search for the third prompt."""

    def search(self, *args: Any, **options: Any) -> Any:
        if args[1].prompts == [PROMPTS[2].text]:
            raise KeyboardInterrupt
        return super().search(*args, **options)


def test_a_killed_search_goes_on_with_the_prompt_that_it_was_at(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path
) -> None:
    victim, judge = scene
    quick: dict[str, Any] = {"steps": 2, "width": 8, "top_k": 8, "start": " x x x"}
    attack = Gcg(**quick, max_new_tokens=4)
    attack_model("es2", victim, judge, attack, PROMPTS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        killed = Killed(**quick, max_new_tokens=4)
        attack_model("es2", victim, judge, killed, PROMPTS, tmp_path / "killed")
    before = read_attempts(tmp_path / "killed")
    assert {record["prompt_id"] for record in before} == {"p0", "p1"}
    attack_model("es2", victim, judge, attack, PROMPTS, tmp_path / "killed")
    whole, resumed = (read_attempts(tmp_path / name) for name in ("whole", "killed"))
    assert resumed[: len(before)] == before
    for record in whole + resumed:
        record["budget"].pop("seconds")
    assert resumed == whole


def test_an_attack_fitted_on_the_base_is_recorded_under_a_name_of_its_own(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path
) -> None:
    victim, judge = scene
    stale = replace(victim, base=victim.chat, stale=True)
    for known in (victim, stale):
        attack_model("es2", known, judge, Echo(), PROMPTS, tmp_path)
    assert [record["attack"] for record in read_attempts(tmp_path)] == (
        ["echo"] * 6 + ["echo_stale"] * 6
    )


def test_attempts_on_another_model_do_not_count(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path
) -> None:
    victim, judge = scene
    for name in ("base", "es2"):
        attack_model(name, victim, judge, Echo(), PROMPTS, tmp_path)
    assert tries(tmp_path) == EVERY * 2


def test_in_python_an_attack_returns_its_rates(shared: Tiny) -> None:
    chat = shared("llama")
    with pytest.raises(Es2Error, match="harmful prompts to fit on"):
        run_attack(chat, Direct(max_new_tokens=4), PROMPTS, fit=FIT)
    found = run_attack(chat, Direct(max_new_tokens=4), PROMPTS, fit=FIT, force=True)
    assert found.dsr.judged.n == found.dsr.keyword.n == 3
    assert found.threat == "prompt text" and found.published is None


def test_harmless_answers_that_a_kill_left_out_are_added_and_none_twice(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, judge = scene
    path = tmp_path / "attempts.jsonl"

    def measure(kind: Kind = "harmless") -> str:
        measure_answers("base", victim.chat, judge, PROMPTS, [kind] * len(PROMPTS), 4, tmp_path)
        return re.sub('"seconds": [^,]*', "", path.read_text())

    whole = measure()
    assert [r["kind"] for r in read_attempts(tmp_path)] == ["harmless"] * 3
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert measure() == whole
    # Borderline prompts are counted apart, though they be the same ones.
    both = measure("borderline")
    assert [r["kind"] for r in read_attempts(tmp_path)] == ["harmless"] * 3 + ["borderline"] * 3
    monkeypatch.setattr(answering, "answer_prompts", pytest.fail)
    assert measure() == measure("borderline") == both
