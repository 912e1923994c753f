"""States driven from the base's along harmful answers, row by row by the models' own forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.target import AFFIRMATION
from es2.data.fitting import FitPrompts
from es2.defences.base import Material, unless_few
from es2.defences.bent import Bent, record_answers
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.reference import record
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS, chances, streams, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(5)]
LAYERS = (2, 4)
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=2, after_start=0.0, kl_weight=2.0, bend=0.7, bend_tokens=3)
FIT = FitPrompts(HARMFUL, PROMPTS, HARMFUL[:2], PROMPTS[:2])


def material(chat: ChatModel, out: Path, settings: TrainSettings = SETTINGS) -> Material:
    return Material(chat, FIT, class_states(chat, FIT), LAYERS, settings, lambda text: False, out)


def objective_for(chat: ChatModel, out: Path, terms: Es2 = TERMS) -> Separation:
    objective = terms.prepare(material(chat, out))
    assert isinstance(objective, Separation)
    return objective


@torch.no_grad()
def slow_bend(base: ChatModel, tuned: ChatModel, bent: Bent, terms: Es2, step: int) -> Tensor:
    """Token by token."""
    before = [streams(base, row) for row in bent.texts.rows]
    total = torch.zeros(())
    for layer in LAYERS:
        every = [
            state.norm()
            for states, begin in zip(before, bent.texts.begins, strict=True)
            for state in states[layer - 1][begin:]
        ]
        norm, far = sum(every) / len(every), []
        for index in batch_indices(len(bent.texts), SETTINGS.batch_size, step, SETTINGS.seed):
            now, begin = streams(tuned, bent.texts.rows[index]), bent.texts.begins[index]
            pairs = zip(now[layer - 1][begin:], before[index][layer - 1][begin:], strict=True)
            far += [(one - other).norm() / norm for one, other in pairs]
        reached = min(sum(far) / len(far), torch.tensor(terms.bend_cap))
        total = total - terms.bend * reached
    kls = []
    for index in batch_indices(len(PROMPTS), SETTINGS.batch_size, step, SETTINGS.seed + 1):
        row, first = bent.harmless.rows[index], bent.harmless.firsts[index]
        was, now = chances(base, row)[first:], chances(tuned, row)[first:]
        kls.append((was.exp() * (was - now)).sum(-1).mean())
    return total + terms.kl_weight * sum(kls) / len(kls)


@pytest.mark.parametrize("cap", [1e-3, 10.0])
def test_what_is_added_is_the_capped_distance_and_the_kl_along_the_answers(
    tiny: Callable[[str], ChatModel], family: str, tmp_path: Path, cap: float
) -> None:
    chat, terms = tiny(family), replace(TERMS, bend_cap=cap)
    objective = objective_for(chat, tmp_path, terms)
    base = ChatModel(chat.name, copy.deepcopy(chat.model), chat.tokenizer)
    tuned = with_lora(chat)
    assert objective.bent is not None
    for step in range(2):
        with torch.no_grad():
            loss, metrics = objective.loss(tuned, step)
            plain, _ = replace(objective, bent=None).loss(tuned, step)
        slow = slow_bend(base, tuned, objective.bent, terms, step)
        torch.testing.assert_close(loss - plain, slow, rtol=1e-3, atol=1e-3)
        assert metrics["bent_2"] > 0 and metrics["kl_answers"] > 0


def test_answers_go_on_from_the_opening_and_their_states_stand_behind_it(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = shared("llama")
    bent = record_answers(material(chat, tmp_path), record(chat, PROMPTS, 3), 3)
    assert len(bent.texts) == len(HARMFUL) and len(bent.harmless) == len(PROMPTS)
    starts = {tuple(chat.template.encode(prompt, AFFIRMATION)) for prompt in HARMFUL}
    for row, begin, states in zip(bent.texts.rows, bent.texts.begins, bent.states, strict=True):
        assert tuple(row[:begin]) in starts
        assert all(len(states[layer]) == len(row) - begin for layer in LAYERS)


def test_harmless_answers_are_made_once_and_the_kl_reads_their_start(
    shared: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = shared("llama")
    objective = objective_for(chat, tmp_path, replace(TERMS, consistent=False))
    short, bent = record(chat, PROMPTS, TERMS.response_tokens), objective.bent
    assert bent is not None and objective.harmless.rows == short.rows
    for own, slow in zip(objective.harmless.hidden, short.hidden, strict=True):
        torch.testing.assert_close(own, slow, rtol=1e-4, atol=1e-4)
    pairs = zip(bent.harmless.rows, short.rows, strict=True)
    assert all(long[: len(row)] == row for long, row in pairs)
    assert max(map(len, bent.harmless.rows)) > max(map(len, short.rows))


def test_without_the_weight_there_is_neither_a_row_nor_a_number_more(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    objective = objective_for(chat, tmp_path, replace(TERMS, bend=0.0))
    assert objective.bent is None
    _, metrics = objective.loss(with_lora(chat), 0)
    assert not [name for name in metrics if "bent" in name or "answers" in name]


def test_training_drives_the_states_away_up_to_the_cap(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=24, lr=1e-2, rank=4, validate_every=0)
    terms = replace(TERMS, bend=3.0, bend_cap=0.3, kl_weight=0.1, kl_threshold=100.0)
    objective = terms.prepare(material(chat, tmp_path, settings))
    progress = train(attach_lora(chat, settings, LAYERS), objective, settings, tmp_path)
    first, last = (progress.history[place]["bent_4"] for place in (0, -1))
    assert first < 0.05 and last > 0.2


def test_a_rule_that_keeps_less_than_a_quarter_keeps_all() -> None:
    assert unless_few([1, 2], list(range(8))) == [1, 2]
    assert unless_few([1], list(range(8))) == list(range(8))
