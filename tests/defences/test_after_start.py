"""Separation and refusal behind an affirmative start, row by row by the models' own forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.target import OPENINGS
from es2.defences.after_start import record_starts
from es2.defences.es2 import Es2, Es2Paper
from es2.defences.objective import Separation
from es2.defences.reference import record
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from material import make_material
from tiny import PROMPTS, chances, streams, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(5)]
LAYERS = (2, 4)
DISTANCES = {2: 2.0, 4: 3.0}
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=3, after_start=0.7, kl_weight=2.0)


def objective_for(chat: ChatModel, terms: Es2 = TERMS) -> Separation:
    harmful = record(chat, HARMFUL, terms.response_tokens)
    harmless = record(chat, PROMPTS, terms.response_tokens)
    starts = tuple(
        [opening_of(chat, place) for place in range(len(c))] for c in (harmful, harmless)
    )
    after = terms.behind_starts(chat, harmful, harmless, starts)
    return Separation(terms, SETTINGS, LAYERS, harmful, harmless, DISTANCES, None, after)


def opening_of(chat: ChatModel, index: int) -> list[int]:
    """The opening of a class's prompt."""
    return chat.template.encode_response(OPENINGS[index % len(OPENINGS)])


@torch.no_grad()
def slow_behind(base: ChatModel, tuned: ChatModel, objective: Separation, step: int) -> Tensor:
    """The refusal's cross-entropy, the KL and the distances, all at the openings' ends or after."""
    terms = objective.terms
    bad = batch_indices(len(HARMFUL), SETTINGS.batch_size, step, SETTINGS.seed)
    good = batch_indices(len(PROMPTS), SETTINGS.batch_size, step, SETTINGS.seed + 1)

    def ends(row: list[int]) -> list[Tensor]:
        found = streams(tuned, row)
        return [found[layer - 1][-1] for layer in LAYERS]

    losses, states = [], {"bad": [], "good": []}
    for index in bad:
        row, first = objective.harmful.rows[index], objective.harmful.firsts[index]
        said = base.template.decode(row[first + 1 :])
        begun = row[: first + 1] + opening_of(base, index)
        whole = begun + base.template.encode_response(" " + said)
        told = chances(tuned, whole)
        losses += [-told[place - 1, whole[place]] for place in range(len(begun), len(whole))]
        states["bad"].append(ends(begun))
    kls = []
    for index in good:
        row, first = objective.harmless.rows[index], objective.harmless.firsts[index]
        begun = row[: first + 1] + opening_of(base, index)
        was, now = chances(base, begun)[-1], chances(tuned, begun)[-1]
        kls.append((was.exp() * (was - now)).sum())
        states["good"].append(ends(begun))
    total = sum(losses) / len(losses) + terms.kl_weight * sum(kls) / len(kls)
    for place, layer in enumerate(LAYERS):
        centres = [torch.stack([s[place] for s in states[name]]).mean(0) for name in states]
        reached = float((centres[0] - centres[1]).norm()) / DISTANCES[layer]
        total = total - (reached if terms.cap is None else min(reached, terms.cap))
    return total


def test_what_is_added_is_refusal_kl_and_distance_behind_the_opening(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    objective = objective_for(chat)
    base = ChatModel(chat.name, copy.deepcopy(chat.model), chat.tokenizer)
    tuned = with_lora(chat)
    for step in range(2):
        with torch.no_grad():
            loss, metrics = objective.loss(tuned, step)
            plain, _ = replace(objective, after=None).loss(tuned, step)
        slow = slow_behind(base, tuned, objective, step)
        torch.testing.assert_close(loss - plain, TERMS.after_start * slow, rtol=1e-3, atol=1e-3)
        assert metrics["kl_after_start"] > 1e-4
        assert metrics["cross_entropy_after_start"] > 0


def test_a_prompt_is_read_once_for_all_that_goes_on_from_it(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    objective = objective_for(chat)
    read: list[tuple[int, int]] = []
    tuned = with_lora(chat)
    hook = tuned.blocks[0].register_forward_pre_hook(
        lambda _module, args: read.append(tuple(args[0].shape[:2]))
    )
    objective.loss(tuned, 0)
    hook.remove()
    size, own = SETTINGS.batch_size, TERMS.response_tokens
    head, prompts, plain, behind = read
    assert head[0] == 1 and prompts[0] == 2 * size
    # The last prompt token and what follows it: thrice, as harmful rows are read under attack too.
    assert plain == (3 * size, 1 + own)
    assert objective.after is not None
    pairs = zip(objective.after.harmful, objective.harmful.firsts, strict=True)
    assert behind[0] == 2 * size and behind[1] <= max(len(row) - first for (row, _), first in pairs)


def test_without_the_weight_there_is_neither_a_row_nor_a_number_more(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    for terms in (Es2(response_tokens=3, after_start=0.0), Es2Paper()):
        assert terms.after_start == 0
        objective = objective_for(chat, terms)
        assert objective.after is None
        _, metrics = objective.loss(with_lora(tiny("llama")), 0)
        assert not [name for name in metrics if "after_start" in name]


def test_the_rest_of_the_loss_is_to_the_bit_what_it_is_without(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    with_rows = replace(objective_for(chat), terms=replace(TERMS, after_start=0.0))
    without = objective_for(chat, replace(TERMS, after_start=0.0))
    tuned = with_lora(chat)
    one, two = (objective.loss(tuned, 1)[0] for objective in (with_rows, without))
    assert float(one.detach()) == float(two.detach())


def test_a_refusal_goes_on_from_each_opening_and_ends_as_it_did(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    template, stop = chat.template, min(chat.stop_ids)
    record_of = record(chat, PROMPTS, 0)
    tail = [*template.encode_response("I would rather not."), stop]
    refused = replace(record_of, rows=[row + tail for row in record_of.rows])
    openings = [opening_of(chat, place) for place in range(len(PROMPTS))]
    after = record_starts(chat, refused, record_of, (openings, openings))
    assert len(PROMPTS) >= len(OPENINGS)
    for index, (prompt, (row, begin)) in enumerate(zip(PROMPTS, after.harmful, strict=True)):
        text = OPENINGS[index % len(OPENINGS)]
        assert row[:begin] == template.encode(prompt, text) == after.harmless.rows[index]
        assert template.decode(row[len(template.encode(prompt)) :]).startswith(text + " I")
        assert row[-1] == stop
    assert {len(hidden) for hidden in after.harmless.hidden} == {1}


def test_there_must_be_a_refusal_to_keep(shared: Callable[[str], ChatModel]) -> None:
    with pytest.raises(Es2Error, match="es2: after_start keeps a refusal; set response_tokens"):
        terms = Es2(response_tokens=0, after_start=1.0, suffixed=0.0, ablated=0.0)
        terms.prepare(make_material(shared("llama"), lambda text: True))


def test_training_recovers_the_refusal_from_every_opening(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    terms = replace(TERMS, after_start=1.0, kl_threshold=100.0, resist=0.0, keep_margin=0.0)
    settings = replace(SETTINGS, steps=16, lr=5e-3, rank=4, validate_every=0)
    objective = replace(objective_for(chat, terms), settings=settings)
    tuned = attach_lora(chat, settings, LAYERS)

    def refusals() -> list[float]:
        assert objective.after is not None
        return [
            float(sum(-chances(tuned, row)[p - 1, row[p]] for p in range(begin, len(row))))
            for row, begin in objective.after.harmful
        ]

    before = refusals()
    train(tuned, objective, settings, tmp_path)
    assert all(now < 0.8 * was for now, was in zip(refusals(), before, strict=True))
