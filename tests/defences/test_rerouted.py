"""States turned away from the base's along harmful answers, row by row by the models' own forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.data.fitting import FitPrompts
from es2.defences.base import Material, unless_few
from es2.defences.es2 import Es2, Separation
from es2.defences.inner_reference import OPENING
from es2.defences.rerouted import harmful_answers
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(5)]
LAYERS = (2, 4)
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=2, reroute=0.7, reroute_tokens=3)
FIT = FitPrompts(HARMFUL, PROMPTS, HARMFUL[:2], PROMPTS[:2])


def material(chat: ChatModel, out: Path, settings: TrainSettings = SETTINGS) -> Material:
    return Material(chat, FIT, class_states(chat, FIT), LAYERS, settings, lambda text: False, out)


@torch.no_grad()
def slow_likeness(base: ChatModel, tuned: ChatModel, objective: Separation, step: int) -> Tensor:
    assert objective.rerouted is not None
    texts = objective.rerouted.texts

    def streams(chat: ChatModel, row: list[int]) -> list[Tensor]:
        kept: list[Tensor] = []

        def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            kept.append(output[0][0] if isinstance(output, tuple) else output[0])

        hooks = [chat.blocks[layer - 1].register_forward_hook(keep) for layer in LAYERS]
        chat.model(torch.tensor([row]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return kept

    found = []
    for index in batch_indices(len(texts), SETTINGS.batch_size, step, SETTINGS.seed):
        row, begin = texts.rows[index], texts.begins[index]
        for was, now in zip(streams(base, row), streams(tuned, row), strict=True):
            for place in range(begin, len(row)):
                cosine = was[place] @ now[place] / (was[place].norm() * now[place].norm())
                found.append(cosine.clamp(min=0))
    return torch.stack(found).mean()


def test_what_is_added_is_the_likeness_to_the_base_along_the_answers(
    tiny: Callable[[str], ChatModel], family: str, tmp_path: Path
) -> None:
    chat = tiny(family)
    objective = TERMS.prepare(material(chat, tmp_path))
    base = ChatModel(chat.name, copy.deepcopy(chat.model), chat.tokenizer)
    tuned = with_lora(chat)
    for step in range(2):
        with torch.no_grad():
            loss, metrics = objective.loss(tuned, step)
            plain, _ = replace(objective, rerouted=None).loss(tuned, step)
        slow = slow_likeness(base, tuned, objective, step)
        assert 0 < float(slow) < 0.999
        torch.testing.assert_close(loss - plain, TERMS.reroute * slow, rtol=1e-3, atol=1e-3)
        assert metrics["reroute"] == pytest.approx(float(slow), rel=1e-3)


def test_answers_begin_affirmatively_and_count_from_there(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = shared("llama")
    texts = harmful_answers(material(chat, tmp_path), 3).texts
    for prompt, row, begin in zip(HARMFUL, texts.rows, texts.begins, strict=True):
        assert begin == len(chat.template.encode(prompt))
        start = chat.template.encode(prompt, OPENING)
        assert row[: len(start)] == start and len(row) <= len(start) + 3


def test_without_the_weight_nothing_is_written_or_read(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    objective = replace(TERMS, reroute=0.0).prepare(material(shared("llama"), tmp_path))
    assert objective.rerouted is None


def test_training_turns_the_states_away(tiny: Callable[[str], ChatModel], tmp_path: Path) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=16, lr=5e-3, rank=4, validate_every=0)
    terms = replace(TERMS, reroute=5.0, kl_threshold=100.0)
    objective = terms.prepare(material(chat, tmp_path, settings))
    tuned = attach_lora(chat, settings, LAYERS)
    progress = train(tuned, objective, settings, tmp_path)
    first, last = (progress.history[place]["reroute"] for place in (0, -1))
    assert first > 0.99 and last < 0.8 * first


def test_a_rule_that_keeps_less_than_a_quarter_keeps_all() -> None:
    assert unless_few([1, 2], list(range(8))) == [1, 2]
    assert unless_few([1], list(range(8))) == list(range(8))
