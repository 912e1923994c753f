"""Representation bending's loss against the models' own hidden states and logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.target import OPENINGS
from es2.defences.inner_reference import Texts, own_texts, unsafe_texts
from es2.defences.repbend import Bending, RepBend
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

SETTINGS = TrainSettings(steps=10, batch_size=3, rank=2, seed=4)
LAYERS = (2, 4)


def bending(chat: ChatModel, settings: TrainSettings = SETTINGS) -> Bending:
    unsafe, safe = unsafe_texts(chat, begun(chat, HARMFUL, 4)), own_texts(chat, PROMPTS, 4)
    return Bending(RepBend(), settings, LAYERS, unsafe, safe, frozen_copy(chat, settings))


def slow_terms(
    objective: Bending, base: ChatModel, tuned: ChatModel, step: int
) -> dict[str, Tensor]:
    """Text by text, layer by layer, position by position."""

    def picked(texts: Texts, seed: int) -> list[tuple[list[int], int]]:
        indices = batch_indices(len(texts), 3, step, seed)
        return [(texts.rows[i], texts.begins[i]) for i in indices]

    def distances(rows: list[tuple[list[int], int]], layers: tuple[int, ...]) -> Tensor:
        found = []
        for row, begin in rows:
            then, now = streams(base, row), streams(tuned, row)
            for layer in layers:
                found += [*(now[layer - 1] - then[layer - 1].detach())[begin:].norm(dim=-1)]
        return torch.stack(found).mean()

    bad, good = picked(objective.unsafe, 4), picked(objective.safe, 5)
    lasts = [[stream[begin - 1] for stream in streams(tuned, row)] for row, begin in bad]
    apart = torch.stack(
        [
            1 - torch.cosine_similarity(lasts[i][layer - 1], lasts[j][layer - 1], dim=0)
            for layer in LAYERS
            for i in range(3)
            for j in range(3)
            if i != j
        ]
    ).mean()
    kl = torch.zeros(())
    for row, _ in good:
        was, now = (
            (chat.model(torch.tensor([row]), use_cache=False).logits[0].float() / 2).softmax(-1)
            for chat in (base, tuned)
        )
        was = was.detach()
        each = (was * (was.log() - now.log())).sum(-1)
        kl = kl + 4 * each[base.template.head :].sum() / 3
    return {
        "drift_unsafe": distances(bad, LAYERS),
        "drift_safe": distances(good, (1, 2, 3, 4)),
        "apart": apart,
        "divergence": kl,
    }


def slow_loss(terms: dict[str, Tensor]) -> Tensor:
    bent = 0.5 * terms["drift_safe"] - 0.5 * terms["drift_unsafe"]
    return bent + 0.1 * terms["apart"] + 0.3 * terms["divergence"]


def test_the_loss_is_the_formula_for_every_family(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base = tiny(family)
    objective = bending(base)
    tuned = with_lora(tiny(family))
    with torch.no_grad():
        loss, metrics = objective.loss(tuned, 1)
        slow = slow_terms(objective, base, tuned, 1)
    for name, value in slow.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-3), name
        assert metrics[name] > 1e-3
    torch.testing.assert_close(loss, slow_loss(slow), rtol=1e-3, atol=1e-4)


def test_the_gradient_is_the_formulas(tiny: Callable[[str], ChatModel]) -> None:
    base, tuned = tiny("llama"), with_lora(tiny("llama"))
    objective = bending(base)
    parameters = [p for p in tuned.model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(objective.loss(tuned, 2)[0], parameters)
    slow = torch.autograd.grad(slow_loss(slow_terms(objective, base, tuned, 2)), parameters)
    one, two = (torch.cat([g.flatten() for g in gradient]) for gradient in (mine, slow))
    assert two.norm() > 0
    assert (one - two).norm() < 1e-3 * two.norm()


@pytest.mark.parametrize("rank", [4, 0])
def test_training_drives_unsafe_states_away_more_than_safe_ones(
    tiny: Callable[[str], ChatModel], tmp_path: Path, rank: int
) -> None:
    chat = tiny("llama")
    lr = 1e-2 if rank else 2e-3
    settings = TrainSettings(steps=15, batch_size=4, rank=rank, lr=lr, warmup=0, validate_every=0)
    objective = bending(chat, settings)
    if rank:
        chat = attach_lora(chat, settings, LAYERS)
    else:
        unfreeze(chat)
    history = train(chat, objective, settings, tmp_path).history
    first, last = history[0], history[-1]
    for name in ("drift_unsafe", "drift_safe", "divergence"):
        assert first[name] == pytest.approx(0, abs=1e-3), name
    assert last["drift_unsafe"] > 0.5
    assert last["drift_unsafe"] > 1.5 * last["drift_safe"]


def test_one_text_alone_has_none_to_be_like(tiny: Callable[[str], ChatModel]) -> None:
    chat = with_lora(tiny("llama"))
    loss, metrics = bending(chat, TrainSettings(batch_size=1)).loss(chat, 0)
    assert metrics["apart"] == 0
    assert torch.isfinite(loss)


def test_it_prepares_itself_from_prompts_alone(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    given = make_material(chat, lambda text: not text.startswith(OPENINGS))
    objective = RepBend(response_tokens=3).prepare(given)
    assert objective.layers == (2, 3, 4)
    assert len(objective.unsafe) == len(HARMFUL)
    assert len(objective.safe) == 2 * len(PROMPTS)
    assert RepBend(layers=(4, 2), response_tokens=1).prepare(given).layers == (2, 4)


def test_the_published_layers_are_20_to_30_of_32() -> None:
    assert [round(share * 32) for share in RepBend.shares] == list(range(20, 31))
