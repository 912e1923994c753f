"""Safety tuning's loss against the models' own logits, row by row and token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.defences.safety_sft import REFUSAL, lean, prepare, refusal_margins
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from tiny import PROMPTS, with_lora

HARMFUL = ["Tell me of ships", "Tell me of the sea and of all its winds", "And of rain?"]
SETTINGS = TrainSettings(batch_size=2, seed=4)


@torch.no_grad()
def chances(chat: ChatModel, row: list[int]) -> Tensor:
    """Log-probabilities after every token of a row, read alone."""
    return chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


@pytest.mark.parametrize(
    ("first", "ratio", "keep"), [(1.0, 1, 1.0), (10.0, 1, 0.0), (10.0, 2, 3.0)]
)
def test_the_loss_is_the_refusals_cross_entropy_and_the_kl_from_the_model_as_it_was(
    tiny: Callable[[str], ChatModel], family: str, first: float, ratio: int, keep: float
) -> None:
    base = tiny(family)
    objective = prepare(base, HARMFUL, PROMPTS, SETTINGS, 3, ratio, keep, first)
    tuned = with_lora(tiny(family))

    total, weight = 0.0, 0.0
    for row, start in (objective.harmful[i] for i in batch_indices(len(HARMFUL), 2, 1, 4)):
        said = chances(tuned, row)
        for place in range(start, len(row)):
            own = first if place == start else 1.0
            total -= own * float(said[place - 1, row[place]])
            weight += own
    refusal = total / weight

    kept = []
    for i in batch_indices(len(PROMPTS), 2 * ratio, 1, 5):
        row, start = objective.harmless.rows[i], objective.harmless.firsts[i]
        before, after = chances(base, row)[start:], chances(tuned, row)[start:]
        each = (before.exp() * (before - after)).sum(-1)
        weights = torch.tensor([first] + [1.0] * (len(each) - 1))
        kept.append(float((weights * each).sum() / weights.sum()))
    expected = refusal + keep * sum(kept) / len(kept)

    with torch.no_grad():
        loss, metrics = objective.loss(tuned, 1)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert metrics["cross_entropy"] == pytest.approx(refusal, rel=1e-4)
    assert metrics["kl"] == pytest.approx(sum(kept) / len(kept), rel=1e-3)


def test_harmful_prompts_are_refused_and_harmless_ones_answered_as_before(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    objective = prepare(chat, HARMFUL, PROMPTS, SETTINGS, answer_tokens=3)
    for prompt, (row, start) in zip(HARMFUL, objective.harmful, strict=True):
        assert row == [*chat.template.encode(prompt, REFUSAL), min(chat.stop_ids)]
        assert row[:start] == chat.template.encode(prompt)
    answered = zip(objective.harmless.rows, objective.harmless.firsts, strict=True)
    for prompt, (row, first) in zip(PROMPTS, answered, strict=True):
        assert row[: first + 1] == chat.template.encode(prompt)
        assert 0 < len(row) - first - 1 <= 3
    # The model has not moved yet: all the loss is refusal.
    loss, metrics = objective.loss(chat, 0)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    assert float(loss) == pytest.approx(metrics["cross_entropy"], rel=1e-4)


def slow_margin(chat: ChatModel, prompt: str) -> float:
    """How much likelier the refusal's first token is than the likeliest other, read alone."""
    row = chat.template.encode(prompt)
    said = chances(chat, row)[-1].clone()
    start = chat.template.encode(prompt, REFUSAL)[len(row)]
    own = float(said[start])
    said[start] = -torch.inf
    return own - float(said.max())


def test_a_margin_is_that_of_the_refusals_first_token_over_the_likeliest_other(
    chat: ChatModel,
) -> None:
    expected = [slow_margin(chat, prompt) for prompt in PROMPTS]
    assert refusal_margins(chat, PROMPTS).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_leaning_asks_every_margin_to_change_by_the_same(tiny: Callable[[str], ChatModel]) -> None:
    base, tuned = tiny("llama"), with_lora(tiny("llama"))
    objective = lean(base, HARMFUL, PROMPTS, -0.5, SETTINGS)
    picked = [HARMFUL[i] for i in batch_indices(len(HARMFUL), 2, 1, 4)]
    picked += [PROMPTS[i] for i in batch_indices(len(PROMPTS), 2, 1, 5)]
    moved = [slow_margin(tuned, prompt) - slow_margin(base, prompt) for prompt in picked]
    loss, metrics = objective.loss(tuned, 1)
    assert float(loss) == pytest.approx(sum((m + 0.5) ** 2 for m in moved) / len(moved), rel=1e-3)
    assert metrics["moved"] == pytest.approx(sum(moved) / len(moved), abs=1e-4)
    # Nothing has moved yet: all that is left to do is to lean.
    assert float(objective.loss(base, 1)[0]) == pytest.approx(0.25, rel=1e-3)


def test_training_to_lean_moves_both_classes(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("qwen2")
    before = refusal_margins(chat, [*HARMFUL, *PROMPTS])
    settings = TrainSettings(steps=30, batch_size=3, rank=4, lr=1e-2, validate_every=0)
    objective = lean(chat, HARMFUL, PROMPTS, -0.5, settings)
    tuned = attach_lora(chat, settings, ())
    train(tuned, objective, settings, tmp_path)
    moved = refusal_margins(tuned, [*HARMFUL, *PROMPTS]) - before
    assert moved.mean().item() == pytest.approx(-0.5, abs=0.25)
