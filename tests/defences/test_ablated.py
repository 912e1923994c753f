"""Where a line is read that is taken out, and that refusal without it can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from es2.attacks.base import Victim
from es2.attacks.refusal_ablation import RefusalAblation, ablation_edits
from es2.attacks.target import affirmation_loss
from es2.defences.ablated import TRIED, Ablated, lines, lines_at
from es2.defences.es2 import Es2
from es2.defences.trainer import attach_lora, seeded, train
from es2.models.forward import forward
from es2.models.loading import ChatModel
from es2.separation.probe import prompt_states
from material import HARMFUL, make_material
from tiny import PROMPTS, with_lora

PLAIN: dict[str, Any] = {"response_tokens": 3, "after_start": 0.0, "suffixed": 0.0, "resist": 0.0}
"""Nothing beside it that takes long."""


def test_the_line_is_the_difference_of_the_centres(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    states = [prompt_states(chat, texts)[:, 2].mean(0) for texts in (HARMFUL, PROMPTS)]
    way = states[0] - states[1]
    rows = [[chat.template.encode(text) for text in texts] for texts in (HARMFUL, PROMPTS)]
    torch.testing.assert_close(
        lines(chat, *rows, (2, 3))[1], way / way.norm(), rtol=1e-3, atol=1e-4
    )


def test_one_class_on_both_sides_has_no_line(tiny: Callable[[str], ChatModel]) -> None:
    chat = tiny("llama")
    rows = [chat.template.encode(text) for text in PROMPTS]
    assert torch.equal(lines(chat, rows, rows, (3,))[0], torch.zeros(chat.model.config.hidden_size))


def test_lines_are_read_where_the_attack_would_read_its_own(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    material = make_material(tiny(family), lambda text: True)
    chosen = lines_at(material.chat, material.states, material.fit.held_harmful)
    victim = Victim(material.chat, material.fit, lambda chat, fit: material.states)
    losses = RefusalAblation().losses(victim.chat, victim.states, victim.fit.held_harmful)
    assert RefusalAblation().choose(victim)[0] in chosen
    for layer, loss in losses.items():
        assert (layer in chosen) == (loss - min(losses.values()) <= max(losses.values()) - loss)


def test_the_line_that_is_taken_out_serves_the_attack_best_of_those_tried(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat, layers = tiny("llama"), (1, 2, 3, 4)
    heads = [chat.template.encode(text) for text in HARMFUL]
    rows = [head + chat.template.encode_response("I'm sorry") for head in heads]
    harmless = [chat.template.encode(text) for text in PROMPTS]

    def without(layer: int) -> tuple[float, Tensor]:
        edits = ablation_edits(chat.depth, lines(chat, heads, harmless, (layer,))[0])
        final = forward(chat, rows, keep=chat.template.head, edits=edits).final
        assert final is not None
        return affirmation_loss(chat, heads, edits), final

    found = {layer: without(layer) for layer in layers}
    seen = set()
    for step in range(12):
        drawn = torch.randperm(len(layers), generator=seeded(1, step))[:TRIED].tolist()
        best = min((layers[place] for place in drawn), key=lambda layer: found[layer][0])
        out = Ablated(layers).read(chat, rows, heads, heads, harmless, seeded(1, step))
        assert out.final is not None
        torch.testing.assert_close(out.final, found[best][1])
        seen.add(best)
    assert len(seen) == 2


def test_what_the_base_says_is_learnt_without_the_line(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    material = make_material(chat, lambda text: True)
    settings = replace(material.settings, steps=60, lr=1e-2, rank=4, validate_every=0)
    terms = Es2(ablated=5.0, cap=0.0, kl_threshold=100.0, consistent=False, **PLAIN)
    objective = terms.prepare(replace(material, settings=settings))
    progress = train(attach_lora(chat, settings, (2, 4)), objective, settings, tmp_path)
    kls = [line["kl_ablated"] for line in progress.history if "kl_ablated" in line]
    assert len(kls) == 30
    assert sum(kls[-5:]) < 0.7 * sum(kls[:5])


def test_without_the_weight_nothing_is_read(tiny: Callable[[str], ChatModel]) -> None:
    material = make_material(tiny("llama"), lambda text: True)
    objective = Es2(ablated=0.0, consistent=False, **PLAIN).prepare(material)
    assert objective.ablated is None
    _, metrics = objective.loss(with_lora(material.chat), 0)
    assert not [name for name in metrics if "ablated" in name]
