"""Attacks and costs end as records: none missing, none twice, whatever was there before."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from es2.attacks.base import Attack, Attempt, ThreatModel, Victim
from es2.attacks.budget import Budget
from es2.attacks.direct import Direct
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge, Judge
from es2.models.loading import ChatModel
from es2.pipeline import cost
from es2.pipeline.attack import attack as run_attack
from es2.pipeline.attack import attack_model
from es2.pipeline.cost import measure_refusals
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
    return Victim(chat, FIT), CalibratedJudge(chat, Judge())


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


def test_attempts_on_another_model_do_not_count(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path
) -> None:
    victim, judge = scene
    for name in ("base", "es2"):
        attack_model(name, victim, judge, Echo(), PROMPTS, tmp_path)
    assert tries(tmp_path) == EVERY * 2


def test_in_python_an_attack_returns_its_rates(shared: Tiny) -> None:
    chat = shared("llama")
    found = run_attack(chat, Direct(max_new_tokens=4), PROMPTS, fit=FIT)
    assert found.dsr.judged.n == found.dsr.keyword.n == 3
    assert found.threat == "prompt text" and found.published is None


def test_harmless_answers_that_a_kill_left_out_are_added_and_none_twice(
    scene: tuple[Victim, CalibratedJudge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, judge = scene
    path = tmp_path / "attempts.jsonl"

    def measure(kind: Kind = "harmless") -> str:
        measure_refusals("base", victim.chat, judge, kind, PROMPTS, 4, tmp_path)
        return re.sub('"seconds": [^,]*', "", path.read_text())

    whole = measure()
    assert [r["kind"] for r in read_attempts(tmp_path)] == ["harmless"] * 3
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    assert measure() == whole
    # Borderline prompts are counted apart, though they be the same ones.
    both = measure("borderline")
    assert [r["kind"] for r in read_attempts(tmp_path)] == ["harmless"] * 3 + ["borderline"] * 3
    monkeypatch.setattr(cost, "generate", pytest.fail)
    assert measure() == measure("borderline") == both
