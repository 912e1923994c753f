"""Direct inquiry asks as a user would, and adds nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from es2.attacks.base import Victim
from es2.attacks.direct import Direct
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.loading import ChatModel
from tiny import PROMPTS

NOTHING = FitPrompts([], [], [], [])
ASKED = [
    Prompt(text, None, target=None, category="", borderline=False, id=str(i), source="tests")
    for i, text in enumerate(PROMPTS)
]


def test_the_completion_is_the_models_own_greedy_answer(chat: ChatModel) -> None:
    (found,) = Direct(max_new_tokens=8).run(Victim(chat, NOTHING), ASKED)
    for attempt, prompt in zip(found, PROMPTS, strict=True):
        ids = torch.tensor([chat.template.encode(prompt)])
        out = chat.inner.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )
        assert attempt.completion == chat.template.decode(out[0, ids.shape[1] :].tolist())
        assert attempt.prompt == prompt
        assert attempt.norm is None


def test_progress_counts_every_prompt_once(shared: Callable[[str], ChatModel]) -> None:
    chat = ChatModel("x", shared("llama").model, shared("llama").tokenizer, batch_size=4)
    counts: list[int] = []
    list(
        Direct(max_new_tokens=2).run(
            Victim(chat, NOTHING), ASKED, progress=lambda count, note=None: counts.append(count)
        )
    )
    assert sum(counts) == len(ASKED)


def test_nothing_is_asked_again_that_is_done(shared: Callable[[str], ChatModel]) -> None:
    victim = Victim(shared("llama"), NOTHING)
    assert list(Direct().run(victim, ASKED, skip={""})) == []
