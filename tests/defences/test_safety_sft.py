"""Safety tuning's loss against the models' own logits, row by row and token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from es2.defences.safety_sft import REFUSAL, SafetySft
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.loading import ChatModel
from tiny import PROMPTS, chances, with_lora

HARMFUL = ["Tell me of ships", "Tell me of the sea and of all its winds", "And of rain?"]
SETTINGS = TrainSettings(batch_size=2, seed=4)


@pytest.mark.parametrize(
    ("first", "ratio", "keep"), [(1.0, 1, 1.0), (10.0, 1, 0.0), (10.0, 2, 3.0)]
)
def test_the_loss_is_the_refusals_cross_entropy_and_the_kl_from_the_model_as_it_was(
    tiny: Callable[[str], ChatModel], family: str, first: float, ratio: int, keep: float
) -> None:
    base = tiny(family)
    terms = SafetySft(ratio=ratio, soft=True, keep=keep, first=first, answer_tokens=3)
    objective = terms.rows(base, HARMFUL, PROMPTS, SETTINGS)
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
    terms = SafetySft(ratio=1, soft=True, answer_tokens=3)
    objective = terms.rows(chat, HARMFUL, PROMPTS, SETTINGS)
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


def test_the_published_form_is_the_cross_entropy_of_refusals_and_of_the_models_own_answers(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    terms = SafetySft(ratio=2, keep=0.5, answer_tokens=3)
    objective = terms.rows(tiny(family), HARMFUL, PROMPTS, SETTINGS)
    tuned = with_lora(tiny(family))

    def cross_entropy(rows: list[tuple[list[int], int]]) -> float:
        each = [
            -float(chances(tuned, row)[place - 1, row[place]])
            for row, start in rows
            for place in range(start, len(row))
        ]
        return sum(each) / len(each)

    bad = [objective.harmful[i] for i in batch_indices(len(HARMFUL), 2, 1, 4)]
    kept = objective.harmless
    good = [(kept.rows[i], kept.firsts[i] + 1) for i in batch_indices(len(PROMPTS), 4, 1, 5)]
    with torch.no_grad():
        loss, metrics = objective.loss(tuned, 1)
    assert metrics["cross_entropy"] == pytest.approx(cross_entropy(bad), rel=1e-4)
    assert metrics["cross_entropy_harmless"] == pytest.approx(cross_entropy(good), rel=1e-4)
    expected = cross_entropy(bad) + 0.5 * cross_entropy(good)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
