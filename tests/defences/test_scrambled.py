"""States pulled to a random vector along harmful answers, row by row by the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.data.fitting import FitPrompts
from es2.defences.base import Material, unless_few
from es2.defences.es2 import Es2
from es2.defences.inner_reference import OPENING
from es2.defences.scrambled import Scrambled, harmful_answers
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(5)]
LAYERS = (2, 4)
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=2, scramble=0.7, scramble_tokens=3)
FIT = FitPrompts(HARMFUL, PROMPTS, HARMFUL[:2], PROMPTS[:2])


def material(chat: ChatModel, out: Path, settings: TrainSettings = SETTINGS) -> Material:
    return Material(chat, FIT, class_states(chat, FIT), LAYERS, settings, lambda text: False, out)


@torch.no_grad()
def slow_distance(tuned: ChatModel, scrambled: Scrambled, step: int) -> Tensor:
    """Token by token: how far the first critical layer's output is from the goal."""
    texts, found = scrambled.texts, []
    kept: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append(output[0][0] if isinstance(output, tuple) else output[0])

    hook = tuned.blocks[LAYERS[0] - 1].register_forward_hook(keep)
    for index in batch_indices(len(texts), SETTINGS.batch_size, step, SETTINGS.seed):
        tuned.model(torch.tensor([texts.rows[index]]), use_cache=False)
        for state in kept[-1][texts.begins[index] :]:
            found.append((state - scrambled.goal).norm() ** 2 / scrambled.goal.norm() ** 2)
    hook.remove()
    return torch.stack(found).mean()


def test_what_is_added_is_the_distance_from_the_goal_along_the_answers(
    tiny: Callable[[str], ChatModel], family: str, tmp_path: Path
) -> None:
    chat = tiny(family)
    objective = TERMS.prepare(material(chat, tmp_path))
    tuned = with_lora(chat)
    for step in range(2):
        with torch.no_grad():
            loss, metrics = objective.loss(tuned, step)
            plain, _ = replace(objective, scrambled=None).loss(tuned, step)
        assert objective.scrambled is not None
        slow = slow_distance(tuned, objective.scrambled, step)
        torch.testing.assert_close(loss - plain, TERMS.scramble * slow, rtol=1e-3, atol=1e-3)
        assert metrics["scramble"] == pytest.approx(float(slow), rel=1e-3)


def test_the_goal_is_as_long_as_states_are_and_goes_by_the_seed(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    given = material(shared("llama"), tmp_path)
    first, again = harmful_answers(given, 3), harmful_answers(given, 3)
    other = harmful_answers(replace(given, settings=replace(SETTINGS, seed=2)), 3)
    assert torch.equal(first.goal, again.goal) and not torch.equal(first.goal, other.goal)
    norms = given.states.harmful[:, LAYERS[0] - 1].norm(dim=-1)
    assert float(first.goal.norm()) == pytest.approx(float(norms.mean()), rel=1e-5)
    assert first.layer == LAYERS[0]


def test_answers_count_from_behind_the_opening(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = shared("llama")
    texts = harmful_answers(material(chat, tmp_path), 3).texts
    for prompt, row, begin in zip(HARMFUL, texts.rows, texts.begins, strict=True):
        start = chat.template.encode(prompt, OPENING)
        assert begin == len(start)
        assert row[:begin] == start and begin <= len(row) <= begin + 3


def test_without_the_weight_nothing_is_written_or_read(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    objective = replace(TERMS, scramble=0.0).prepare(material(shared("llama"), tmp_path))
    assert objective.scrambled is None


def test_training_brings_the_states_to_the_goal(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=16, lr=5e-3, rank=4, validate_every=0)
    terms = replace(TERMS, scramble=5.0, kl_threshold=100.0)
    objective = terms.prepare(material(chat, tmp_path, settings))
    tuned = attach_lora(chat, settings, LAYERS)
    progress = train(tuned, objective, settings, tmp_path)
    first, last = (progress.history[place]["scramble"] for place in (0, -1))
    assert last < 0.8 * first


def test_a_rule_that_keeps_less_than_a_quarter_keeps_all() -> None:
    assert unless_few([1, 2], list(range(8))) == [1, 2]
    assert unless_few([1], list(range(8))) == list(range(8))
