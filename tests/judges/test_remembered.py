"""What a judge has read, it need not read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from es2.judges.coherence import CalibratedJudge, Limits
from es2.judges.remembered import Remembering
from es2.models.loading import ChatModel
from tiny import PROMPTS

ANSWERS = [f"the answer number {n}" for n in range(len(PROMPTS))]


class Counting(CalibratedJudge):
    """A judge that keeps what it was shown."""

    def __call__(self, prompts, completions):  # type: ignore[no-untyped-def]
        self.base.__dict__.setdefault("shown", []).extend(zip(prompts, completions, strict=True))
        return super().__call__(prompts, completions)


def test_the_same_pair_is_read_once_and_judged_alike(tiny: Callable[[str], ChatModel]) -> None:
    chat = tiny("llama")
    judge = Remembering(Counting(chat, Limits()))
    prompts, answers = PROMPTS * 2, ANSWERS * 2
    first = judge(prompts, answers)
    assert first[: len(PROMPTS)] == first[len(PROMPTS) :]
    assert judge(prompts, answers) == first
    assert chat.__dict__.pop("shown") == list(zip(PROMPTS, ANSWERS, strict=True))
    assert first[: len(PROMPTS)] == CalibratedJudge(chat, Limits())(PROMPTS, ANSWERS)


def test_another_prompt_or_answer_is_new(tiny: Callable[[str], ChatModel]) -> None:
    chat = tiny("llama")
    judge = Remembering(Counting(chat, Limits()))
    judge(PROMPTS[:1], ANSWERS[:1])
    judge([PROMPTS[0], PROMPTS[1]], [ANSWERS[1], ANSWERS[0]])
    assert len(chat.__dict__.pop("shown")) == 3


def test_records_of_an_earlier_part_are_known_unless_other_rules_made_them(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    known = CalibratedJudge(chat, Limits())(PROMPTS, ANSWERS)
    records = [
        {"prompt": prompt, "completion": answer, "judgement": asdict(judgement)}
        for prompt, answer, judgement in zip(PROMPTS, ANSWERS, known, strict=True)
    ]
    records[0]["judgement"] = records[0]["judgement"] | {"version": "rules-0"}  # type: ignore[operator]
    judge = Remembering(Counting(chat, Limits()), records)
    assert len(judge(PROMPTS, ANSWERS)) == len(PROMPTS)
    assert chat.__dict__.pop("shown") == [(PROMPTS[0], ANSWERS[0])]
