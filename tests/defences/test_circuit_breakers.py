"""Representation rerouting's loss against the models' own hidden states, token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.defences.circuit_breakers import CircuitBreakers, Rerouting, emptied
from es2.defences.inner_reference import own_texts, unsafe_texts
from es2.defences.trainer import (
    TrainSettings,
    attach_lora,
    batch_indices,
    frozen_copy,
    train,
    unfreeze,
)
from es2.models.loading import ChatModel
from material import HARMFUL, begun, make_material
from tiny import PROMPTS, streams, with_lora

SETTINGS = TrainSettings(steps=10, batch_size=3, rank=2, lr=3e-3, warmup=0, seed=4)
LAYERS = (1, 3)


def rerouting(chat: ChatModel, settings: TrainSettings = SETTINGS) -> Rerouting:
    harmful = emptied(chat, unsafe_texts(chat, begun(chat, HARMFUL, 4)), 0.5)
    kept = emptied(chat, own_texts(chat, PROMPTS, 4), 0.5)
    copied = frozen_copy(chat, settings)
    return Rerouting(CircuitBreakers(), settings, LAYERS, harmful, kept, copied)


def slow_loss(objective: Rerouting, base: ChatModel, tuned: ChatModel, step: int) -> Tensor:
    """Text by text, layer by layer, position by position."""
    head = base.template.head
    cosines, distances = [], []
    for index in batch_indices(len(objective.harmful), 3, step, 4):
        row = objective.harmful.rows[index]
        then, now = streams(base, row), streams(tuned, row)
        for layer in LAYERS:
            for position in range(head, len(row)):
                a, b = now[layer - 1][position], then[layer - 1][position].detach()
                cosines.append((a @ b / (a.norm() * b.norm())).clamp(min=0))
    for index in batch_indices(len(objective.kept), 3, step, 5):
        row = objective.kept.rows[index]
        then, now = streams(base, row), streams(tuned, row)
        for layer in range(1, 4):
            for position in range(head, len(row)):
                moved = now[layer - 1][position] - then[layer - 1][position].detach()
                distances.append(moved.norm())
    reroute, retain = torch.stack(cosines).mean(), torch.stack(distances).mean()
    t = step + 1
    return 10 * (1 - t / 20) * reroute + 10 * t / 20 * retain


def test_the_loss_is_the_formula_for_every_family(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base = tiny(family)
    objective = rerouting(base)
    tuned = with_lora(tiny(family), scale=0.1)
    with torch.no_grad():
        loss, metrics = objective.loss(tuned, 6)
        slow = slow_loss(objective, base, tuned, 6)
    torch.testing.assert_close(loss, slow, rtol=1e-4, atol=1e-4)
    assert 0 < metrics["reroute"] < 0.999
    assert metrics["retain"] > 0.01


def test_the_gradient_is_the_formulas_and_reaches_no_block_above(
    tiny: Callable[[str], ChatModel],
) -> None:
    base, tuned = tiny("llama"), with_lora(tiny("llama"), scale=0.1)
    objective = rerouting(base)
    objective.loss(tuned, 2)[0].backward()
    named = {name: p for name, p in tuned.model.named_parameters() if p.requires_grad}
    assert all((p.grad is None) == ("layers.3." in name) for name, p in named.items())
    trained = [p for name, p in named.items() if "layers.3." not in name]
    slow = torch.autograd.grad(slow_loss(objective, base, tuned, 2), trained)
    theirs = torch.cat([g.flatten() for g in slow])
    mine = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    assert theirs.norm() > 0
    assert (mine - theirs).norm() < 1e-3 * theirs.norm()


def test_the_weight_moves_from_turning_half_way_to_holding(
    shared: Callable[[str], ChatModel],
) -> None:
    objective = rerouting(shared("llama"), CircuitBreakers.published)
    assert objective.weights(0) == pytest.approx((10 * (1 - 1 / 300), 10 / 300))
    assert objective.weights(149) == pytest.approx((5, 5))


@pytest.mark.parametrize("rank", [2, 0])
def test_before_training_nothing_is_turned_and_nothing_has_moved(
    tiny: Callable[[str], ChatModel], rank: int
) -> None:
    chat = tiny("llama")
    settings = TrainSettings(steps=10, batch_size=3, rank=rank)
    objective = rerouting(chat, settings)
    if rank:
        chat = attach_lora(chat, settings, LAYERS)
    else:
        unfreeze(chat)
    loss, metrics = objective.loss(chat, 0)
    assert metrics["reroute"] == pytest.approx(1, abs=1e-5)
    assert metrics["retain"] == pytest.approx(0, abs=1e-4)
    assert float(loss.detach()) == pytest.approx(9.5, abs=1e-3)


@pytest.mark.parametrize("rank", [4, 0])
def test_training_turns_the_states_of_harmful_texts(
    tiny: Callable[[str], ChatModel], tmp_path: Path, rank: int
) -> None:
    """The schedule is that of a longer run, in which holding has hardly begun."""
    chat = tiny("llama")
    schedule = TrainSettings(steps=1000, batch_size=4, rank=rank)
    objective = rerouting(chat, schedule)
    lr = 1e-2 if rank else 2e-3
    settings = TrainSettings(steps=15, batch_size=4, rank=rank, lr=lr, warmup=0, validate_every=0)
    if rank:
        chat = attach_lora(chat, settings, LAYERS)
    else:
        unfreeze(chat)
    last = train(chat, objective, settings, tmp_path).history[-1]
    assert last["reroute"] < 0.9


def test_every_second_prompt_is_left_empty_and_all_responses_stay(chat: ChatModel) -> None:
    texts = unsafe_texts(chat, begun(chat, HARMFUL, 3))
    half = emptied(chat, texts, 0.5)
    assert half.responses() == texts.responses()
    assert half.rows[::2] == texts.rows[::2]
    empty = chat.template.encode("")
    assert all(row[: len(empty)] == empty for row in half.rows[1::2])
    assert emptied(chat, texts, 0.0) == texts
    assert set(emptied(chat, texts, 1.0).begins) == {len(empty)}


def test_it_prepares_itself_from_prompts_alone(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    given = make_material(chat, lambda text: False)
    objective = CircuitBreakers(response_tokens=3).prepare(given)
    assert objective.layers == (1, 2)
    assert objective.base is None
    assert len(objective.harmful) == len(HARMFUL)
    assert len(objective.kept) == len(PROMPTS)
    assert CircuitBreakers(layers=(4, 2), response_tokens=1).prepare(given).layers == (2, 4)
