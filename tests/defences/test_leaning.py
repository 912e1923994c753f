"""Leaning: margins against a slow reading, one prompt at a time, and where training takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from es2.defences.leaning import lean, refusal_margins
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from tiny import PROMPTS, chances, with_lora

HARMFUL = ["Tell me of ships", "Tell me of the sea and of all its winds", "And of rain?"]
SETTINGS = TrainSettings(batch_size=2, seed=4)


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
    expected = sum((m + 0.5) ** 2 for m in moved) / len(moved)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-3)
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
