"""Refusal behind a suffix of free vectors, row by row by the models' own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.soft_prompt import embedded
from es2.attacks.target import AFFIRMATION, OPENINGS
from es2.data.fitting import FitPrompts, spread
from es2.defences import DEFENCES
from es2.defences.base import Material
from es2.defences.beginnings import DEPTHS, harmful_beginnings
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.reference import Reference, record
from es2.defences.suffixed import (
    PART,
    PARTS,
    RATE,
    RECORDED,
    TOKENS,
    Suffixed,
    attack,
    climb,
    record_suffixed,
)
from es2.defences.trainer import TrainSettings, adapter_off, seeded, train, trainable
from es2.errors import Es2Error
from es2.models.activations import edit
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS, chances, with_lora

REFUSAL = "I would rather not."
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=3, after_start=0.0, resist=0.0, suffixed=0.7, suffix_steps=2)


def refusing(chat: ChatModel) -> Reference:
    """Harmful rows whose response is a refusal."""
    plain = record(chat, PROMPTS, 0)
    tail = [*chat.template.encode_response(REFUSAL), min(chat.stop_ids)]
    return replace(plain, rows=[row + tail for row in plain.rows])


def material_of(chat: ChatModel, refuses: Callable[[str], bool] = lambda text: True) -> Material:
    """What a defence is given, with a rule of what refuses."""
    fit = FitPrompts(PROMPTS[:3], PROMPTS[3:], PROMPTS[:2], PROMPTS[3:5])
    states = class_states(chat, fit)
    return Material(chat, fit, states, (2, 4), SETTINGS, refuses, Path())


def recorded(chat: ChatModel) -> Suffixed:
    """The rows, behind openings in turn: a base that refuses has no answers that are begun."""
    material, harmful = material_of(chat), refusing(chat)
    starts = harmful_beginnings(material, harmful)
    return record_suffixed(material, harmful, starts, record(chat, PROMPTS[:3], 6))


@torch.no_grad()
def slow_scores(chat: ChatModel, row: list[int], vectors: Tensor, place: int) -> Tensor:
    """Log-probabilities after every token of one row, with the vectors where its suffix stands."""

    def put(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[0, place : place + TOKENS] = vectors
        return changed

    with edit(chat.blocks, {0: put}):
        return chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


def test_it_reads_the_refusals_cross_entropy_with_the_found_vectors_in_place(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    suffixed = recorded(chat)
    tuned = with_lora(chat)
    picked = [0, 3, 4]
    with torch.no_grad():
        refusal, metrics = suffixed.read(tuned, picked, 2, seeded(5, 0), 4.0)
    drawn = torch.randint(len(suffixed.starts), (3,), generator=seeded(5, 0))
    heads = [suffixed.heads[i] for i in picked]
    vectors, _ = climb(tuned, heads, suffixed.starts[drawn], 2, suffixed.far)
    told, openings = [], []
    for index, own in zip(picked, vectors, strict=True):
        head, row, begin = suffixed.heads[index], suffixed.rows[index], suffixed.begins[index]
        scores = slow_scores(tuned, row, own, len(head) - chat.template.tail - TOKENS)
        openings.append(-float(scores[begin - 1, row[begin]]))
        for place in range(begin, len(row)):
            told += [-scores[place - 1, row[place]]] * (4 if place == begin else 1)
    torch.testing.assert_close(refusal, sum(told) / len(told), rtol=1e-3, atol=1e-4)
    assert metrics["cross_entropy_suffixed"] == pytest.approx(float(refusal))
    assert metrics["first_suffixed"] == pytest.approx(sum(openings) / 3, rel=1e-3)


def test_harmless_answers_are_held_to_the_base_at_every_token_alike(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    suffixed = recorded(chat)
    tuned, picked, told = with_lora(chat), [2, 0], []
    with torch.no_grad():
        kl = suffixed.drift(tuned, picked)
        for index in picked:
            row, first = suffixed.harmless.rows[index], suffixed.harmless.firsts[index]
            now = chances(tuned, row)[first:]
            with adapter_off(tuned):
                then = chances(tuned, row)[first:]
            told.append((then.exp() * (then - now)).sum(-1).mean())
    assert float(kl) > 0
    torch.testing.assert_close(kl, sum(told) / len(told), rtol=1e-3, atol=1e-5)


def test_the_search_takes_signed_steps_down_the_affirmations_loss(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = with_lora(tiny(family))
    suffixed = recorded(chat)
    heads, before, far = suffixed.heads[:2], suffixed.starts[:2], suffixed.far
    same, none = climb(chat, heads, before, 0, far)
    after, losses = climb(chat, heads, before, 1, far)
    assert torch.equal(same, before) and not none
    moved = after - before
    target = chat.template.encode_response(AFFIRMATION)

    def loss_of(place: int, vectors: Tensor) -> float:
        head = heads[place]
        scores = slow_scores(chat, head + target, vectors, len(head) - chat.template.tail - TOKENS)
        told = [-float(scores[len(head) + i - 1, token]) for i, token in enumerate(target)]
        return sum(told) / len(told)

    slow = [loss_of(place, before[place]) for place in range(2)]
    assert losses == [pytest.approx(sum(slow) / 2, rel=1e-3)]
    step = torch.zeros_like(before[1])
    step[4, 2] = far
    slope = loss_of(1, before[1] + step) - loss_of(1, before[1] - step)
    assert float(moved[1, 4, 2]) == pytest.approx(-far if slope > 0 else far, rel=1e-3)


def test_starts_are_where_an_attack_on_the_base_stands_after_each_part(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    suffixed = recorded(chat)
    some = spread(suffixed.heads, RECORDED)
    found, far = attack(chat, some, seeded(SETTINGS.seed, 0))
    assert torch.equal(found, suffixed.starts) and far == suffixed.far
    ids = torch.randint(
        len(chat.tokenizer), (len(some), TOKENS), generator=seeded(SETTINGS.seed, 0)
    )
    ids[::2] = chat.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    words = embedded(chat, ids)
    assert far == pytest.approx(RATE * float(words[0].abs().mean()))
    whole, losses = climb(chat, some, words, PARTS * PART, far)
    torch.testing.assert_close(found[-len(some) :], whole)
    assert len(found) == PARTS * len(some)
    assert losses[-1] < losses[0]


def test_rows_start_with_nothing_and_with_openings_in_turn_and_have_room(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    template, pad = chat.template, [chat.template.pad_id] * TOKENS
    suffixed = recorded(chat)
    assert len(PROMPTS) > len(OPENINGS)
    for index, prompt in enumerate(PROMPTS):
        opening = "" if index % 5 == 0 else OPENINGS[index % len(OPENINGS)]
        plain = template.encode(prompt)
        cut = len(plain) - template.tail
        assert suffixed.heads[index] == [*plain[:cut], *pad, *plain[cut:]]
        row, begin = suffixed.rows[index], suffixed.begins[index]
        assert row[:cut] + row[cut + TOKENS : begin] == template.encode(prompt, opening)
        said = template.decode(row[begin:-1]).strip()
        assert said == REFUSAL and row[-1] == min(chat.stop_ids)


def test_a_search_leaves_the_weights_without_gradient(tiny: Callable[[str], ChatModel]) -> None:
    chat = with_lora(tiny("llama"))
    suffixed = recorded(chat)
    climb(chat, suffixed.heads[:2], suffixed.starts[:2], 2, suffixed.far)
    assert all(parameter.grad is None for parameter in trainable(chat).values())


def objective_for(chat: ChatModel, terms: Es2 = TERMS) -> Separation:
    harmful, harmless = refusing(chat), record(chat, PROMPTS, terms.response_tokens)
    distances = {2: 2.0, 4: 3.0}
    material = material_of(chat)
    starts = harmful_beginnings(material, harmful)
    suffixed = terms.behind_suffixes(material, harmful, starts, record(chat, PROMPTS, 8))
    terms = replace(terms, keep_refusal=0.0)  # the invented refusals have no states
    return Separation(terms, SETTINGS, (2, 4), harmful, harmless, distances, None, None, suffixed)


def test_half_the_batch_is_added_and_nothing_without_the_weight(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    objective = objective_for(chat)
    tuned = with_lora(chat)
    loss, metrics = objective.loss(tuned, 1)
    plain, less = replace(objective, suffixed=None).loss(tuned, 1)
    own, kl = metrics["cross_entropy_suffixed"], metrics["kl_along_answers"]
    assert TERMS.kl_first > 1 and metrics["first_suffixed"] != pytest.approx(own)
    added = TERMS.suffixed * (own + TERMS.kl_weight * kl)
    assert float((loss - plain).detach()) == pytest.approx(added, rel=1e-3)
    assert not [name for name in less if "suffix" in name]
    assert isinstance(objective.suffixed, Suffixed)
    assert objective_for(chat, replace(TERMS, suffixed=0.0)).suffixed is None


@pytest.mark.parametrize("name", ["es2", "es2+safety_sft"])
def test_a_defence_prepares_them_where_they_are_wanted(
    tiny: Callable[[str], ChatModel], name: str
) -> None:
    material = material_of(tiny("llama"), lambda text: False)

    def prepared(suffixed: float, tokens: int) -> Separation:
        terms = DEFENCES[name](response_tokens=tokens, suffixed=suffixed, after_start=0.0)
        objective = terms.prepare(material)
        assert isinstance(objective, Separation)
        return objective

    assert prepared(0.0, 3).suffixed is None
    objective = prepared(1.0, 3)
    found = objective.suffixed
    assert found is not None and len(found.rows) == 3
    # Harmless answers are as long as harmful ones stand; elsewhere they are as long as they were.
    assert max(len(states) for states in found.harmless.hidden) == 1 + max(DEPTHS)
    assert max(len(states) for states in objective.harmless.hidden) == 1 + 3
    if name == "es2":
        with pytest.raises(Es2Error, match="suffixed keeps a refusal; set response_tokens above 0"):
            prepared(1.0, 0)
    else:  # it teaches a refusal of its own and needs none that is recorded
        assert prepared(1.0, 0).suffixed is not None


def test_training_makes_the_refusal_likelier_behind_what_is_found(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=32, lr=1e-2, rank=4, validate_every=0)
    objective = replace(objective_for(chat), settings=settings)
    alone = {"kl_weight": 0.0, "kl_threshold": 100.0, "suffixed": 3.0}
    objective = replace(objective, terms=replace(objective.terms, **alone))
    tuned = with_lora(chat)

    def behind() -> float:
        # A step's rows and suffixes are drawn anew: only the same step's can be compared.
        return objective.loss(tuned, 0)[1]["cross_entropy_suffixed"]

    first = behind()
    train(tuned, objective, settings, tmp_path)
    assert behind() < 0.5 * first


def test_harmless_answers_are_made_once_and_the_kl_reads_their_start(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    terms = replace(TERMS, consistent=False)
    objective = terms.prepare(material_of(chat))
    assert isinstance(objective, Separation) and objective.suffixed is not None
    short, long = record(chat, PROMPTS[3:], terms.response_tokens), objective.suffixed.harmless
    assert objective.harmless.rows == short.rows
    for own, slow in zip(objective.harmless.hidden, short.hidden, strict=True):
        torch.testing.assert_close(own, slow, rtol=1e-4, atol=1e-4)
    pairs = zip(long.rows, short.rows, strict=True)
    assert all(whole[: len(row)] == row for whole, row in pairs)
    assert max(map(len, long.rows)) > max(map(len, short.rows))
