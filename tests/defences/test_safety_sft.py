"""Safety tuning's loss against the model's own logits, row by row and token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from es2.defences.safety_sft import REFUSAL, prepare
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.loading import ChatModel
from tiny import PROMPTS

HARMFUL = ["Tell me of ships", "Tell me of the sea and of all its winds", "And of rain?"]
SETTINGS = TrainSettings(batch_size=2, seed=4)


@pytest.mark.parametrize(("first", "ratio"), [(1.0, 1), (10.0, 1), (10.0, 2)])
def test_the_loss_is_the_weighed_cross_entropy_of_the_response_tokens(
    tiny: Callable[[str], ChatModel], family: str, first: float, ratio: int
) -> None:
    chat = tiny(family)
    objective = prepare(chat, HARMFUL, PROMPTS, SETTINGS, 3, ratio, first)
    rows = [objective.harmful[i] for i in batch_indices(len(HARMFUL), 2, 1, 4)]
    rows += [objective.harmless[i] for i in batch_indices(len(PROMPTS), 2 * ratio, 1, 4)]
    total, weight = 0.0, 0.0
    for row, start in rows:
        with torch.no_grad():
            chances = chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)
        for place in range(start, len(row)):
            own = first if place == start else 1.0
            total -= own * float(chances[place - 1, row[place]])
            weight += own
    with torch.no_grad():
        loss, _ = objective.loss(chat, 1)
    assert float(loss) == pytest.approx(total / weight, rel=1e-4)


def test_harmful_prompts_are_refused_and_harmless_ones_answered_as_before(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    objective = prepare(chat, HARMFUL, PROMPTS, SETTINGS, answer_tokens=3)
    for prompt, (row, start) in zip(HARMFUL, objective.harmful, strict=True):
        assert row == [*chat.template.encode(prompt, REFUSAL), min(chat.stop_ids)]
        assert row[:start] == chat.template.encode(prompt)
    for prompt, (row, start) in zip(PROMPTS, objective.harmless, strict=True):
        assert row[:start] == chat.template.encode(prompt)
        assert 0 < len(row) - start <= 4
