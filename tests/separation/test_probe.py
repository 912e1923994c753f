"""Probes find planted directions, on states that are the model's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from es2.data.fitting import FitPrompts
from es2.models.forward import forward
from es2.models.loading import ChatModel
from es2.separation.probe import (
    ClassStates,
    Probe,
    class_states,
    fit_probe,
    fit_probes,
    prompt_states,
)
from tiny import PROMPTS, encode

D = 16


def planted(count: int, direction: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """States labelled by a logistic model with weights `direction` and bias 0.5."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(count, D, generator=random)
    chances = (states @ direction + 0.5).sigmoid()
    return states, torch.rand(count, generator=random) < chances


def test_a_probe_recovers_a_planted_direction_and_bias() -> None:
    direction = torch.linspace(-1, 1, D)
    states, harmful = planted(20_000, direction, seed=0)
    probe = fit_probe(states, harmful, *planted(2000, direction, seed=1))
    assert torch.cosine_similarity(probe.w, direction, dim=0) > 0.99
    assert probe.b == pytest.approx(0.5, abs=0.1)
    # No better than the labels' own noise lets it be.
    best_states, best_labels = planted(2000, direction, seed=1)
    bayes = ((best_states @ direction + 0.5 > 0) == best_labels).float().mean().item()
    assert probe.accuracy == pytest.approx(bayes, abs=0.02)


def test_accuracy_is_measured_on_the_held_out_states() -> None:
    states = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    labels = torch.tensor([False, False, True, True])
    held = torch.tensor([[-3.0], [3.0], [3.0], [3.0]])
    assert (
        fit_probe(states, labels, held, torch.tensor([False, True, True, False])).accuracy == 0.75
    )


def test_the_logit_is_the_log_odds_of_harmful() -> None:
    probe = Probe(torch.tensor([1.0, -2.0]), 0.5, 1.0)
    found = probe.logit(torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]))
    assert found.tolist() == [[1.5, 0.5]]
    assert probe.logit(torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16)).dtype == torch.float32


def test_the_logit_says_the_same_as_the_fitted_classifier() -> None:
    direction = torch.linspace(-1, 1, D)
    states, harmful = planted(500, direction, seed=2)
    held, labels = planted(500, direction, seed=3)
    probe = fit_probe(states, harmful, held, labels)
    assert ((probe.logit(held) > 0) == labels).float().mean().item() == pytest.approx(
        probe.accuracy
    )


def test_every_layer_has_a_probe_of_its_own() -> None:
    torch.manual_seed(0)
    states = [torch.randn(count, 3, D) for count in (40, 30, 20, 10)]
    # Only layer 2 tells the classes apart, along its first coordinate.
    for harmful in (states[0], states[2]):
        harmful[:, 1, 0] += 8
    probes = fit_probes(ClassStates(*states))
    assert sorted(probes) == [1, 2, 3]
    assert probes[2].accuracy == 1.0
    assert probes[2].w.argmax() == 0
    assert max(probes[1].accuracy, probes[3].accuracy) < 0.85
    assert probes[2].logit(states[2][:, 1]).min() > 0 > probes[2].logit(states[3][:, 1]).max()


def test_the_same_seed_fits_the_same_probe() -> None:
    states, harmful = planted(200, torch.linspace(-1, 1, D), seed=0)
    one, two = (fit_probe(states, harmful, states, harmful, seed=4) for _ in range(2))
    assert torch.equal(one.w, two.w)
    assert one.b == two.b


def test_prompt_states_are_the_models_hidden_states_at_the_last_token(chat: ChatModel) -> None:
    found = prompt_states(chat, PROMPTS)
    assert found.shape == (len(PROMPTS), chat.depth, 32)
    for row, states in zip(encode(chat), found, strict=True):
        with torch.no_grad():
            out = chat.inner(torch.tensor([row]), output_hidden_states=True)
        # The entry before the first is the embedding; the last has the final norm applied.
        for layer in range(1, chat.depth):
            own = out.hidden_states[layer][0, -1]
            torch.testing.assert_close(states[layer - 1], own, rtol=1e-4, atol=1e-4)


def test_the_last_layers_states_are_before_the_final_norm(chat: ChatModel) -> None:
    rows = encode(chat)
    found = prompt_states(chat, PROMPTS)[:, -1]
    with torch.no_grad():
        normed = chat.decoder.norm(found)
        out = forward(chat, rows)
    assert out.final is not None
    last = out.at(out.final, range(len(rows)), [len(row) - 1 for row in rows])
    torch.testing.assert_close(normed, last, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, last, atol=1e-2)


def test_prompt_states_do_not_depend_on_the_batch(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    small = ChatModel(chat.name, chat.model, chat.tokenizer, batch_size=2)
    whole = prompt_states(chat, PROMPTS)
    torch.testing.assert_close(prompt_states(small, PROMPTS), whole, rtol=1e-4, atol=1e-4)
    alone = torch.cat([prompt_states(chat, [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)


def test_class_states_keep_the_four_groups_apart(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("qwen2")
    groups = (PROMPTS[:2], PROMPTS[2:3], PROMPTS[3:5], PROMPTS[5:])
    states = class_states(chat, FitPrompts(*groups))
    found = (states.harmful, states.harmless, states.held_harmful, states.held_harmless)
    for texts, group in zip(groups, found, strict=True):
        torch.testing.assert_close(group, prompt_states(chat, texts), rtol=1e-4, atol=1e-4)


def test_a_planted_probability_is_read_back() -> None:
    probe = Probe(torch.tensor([2.0]), -1.0, 1.0)
    state = torch.tensor([[(math.log(0.2 / 0.8) + 1) / 2]])
    assert probe.logit(state).sigmoid().item() == pytest.approx(0.2)
