"""Refusal behind a suffix of free vectors, row by row by the models' own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.soft_prompt import embedded
from es2.attacks.target import AFFIRMATION
from es2.defences.after_start import OPENINGS
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.reference import Reference, record
from es2.defences.suffixed import RATE, TOKENS, Suffixed, climb, record_suffixed
from es2.defences.trainer import TrainSettings, seeded, train, trainable
from es2.errors import Es2Error
from es2.models.activations import edit
from es2.models.loading import ChatModel
from tiny import PROMPTS, with_lora

REFUSAL = "I would rather not."
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)
TERMS = Es2(response_tokens=3, after_start=0.0, resist=0.0, suffixed=0.7, suffix_steps=2)


def refusing(chat: ChatModel) -> Reference:
    """Harmful rows whose response is a refusal."""
    plain = record(chat, PROMPTS, 0)
    tail = [*chat.template.encode_response(REFUSAL), min(chat.stop_ids)]
    return replace(plain, rows=[row + tail for row in plain.rows])


@torch.no_grad()
def slow_scores(chat: ChatModel, row: list[int], vectors: Tensor, place: int) -> Tensor:
    """Log-probabilities after every token of one row, with the vectors where its suffix stands."""

    def put(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[0, place : place + TOKENS] = vectors
        return changed

    with edit(chat.blocks, {0: put}):
        return chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)


def test_the_loss_is_the_refusals_cross_entropy_with_the_found_vectors_in_place(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    suffixed = record_suffixed(chat, refusing(chat))
    tuned = with_lora(chat)
    picked = [0, 3, 4]
    with torch.no_grad():
        loss, metrics = suffixed.loss(tuned, picked, 2, seeded(5, 0), 4.0)
    vectors, _ = climb(tuned, [suffixed.heads[i] for i in picked], 2, seeded(5, 0))
    told = []
    for index, own in zip(picked, vectors, strict=True):
        head, row, begin = suffixed.heads[index], suffixed.rows[index], suffixed.begins[index]
        scores = slow_scores(tuned, row, own, len(head) - chat.template.tail - TOKENS)
        for place in range(begin, len(row)):
            told += [-scores[place - 1, row[place]]] * (4 if place == begin else 1)
    torch.testing.assert_close(loss, sum(told) / len(told), rtol=1e-3, atol=1e-4)
    assert metrics["cross_entropy_suffixed"] == pytest.approx(float(loss))


def test_the_search_takes_signed_steps_down_the_affirmations_loss(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = with_lora(tiny(family))
    suffixed = record_suffixed(chat, refusing(chat))
    heads = suffixed.heads[:2]
    before, none = climb(chat, heads, 0, seeded(3, 0))
    after, metrics = climb(chat, heads, 1, seeded(3, 0))
    ids = torch.randint(len(chat.tokenizer), (2, TOKENS), generator=seeded(3, 0))
    ids[0] = chat.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    torch.testing.assert_close(before, embedded(chat, ids))
    assert not none
    far, moved = RATE * float(before.abs().mean()), after - before
    target = chat.template.encode_response(AFFIRMATION)

    def loss_of(place: int, vectors: Tensor) -> float:
        head = heads[place]
        scores = slow_scores(chat, head + target, vectors, len(head) - chat.template.tail - TOKENS)
        told = [-float(scores[len(head) + i - 1, token]) for i, token in enumerate(target)]
        return sum(told) / len(told)

    slow = [loss_of(place, before[place]) for place in range(2)]
    assert metrics["suffix_first"] == pytest.approx(sum(slow) / 2, rel=1e-3)
    step = torch.zeros_like(before[1])
    step[4, 2] = 0.3 * float(before.abs().mean())
    slope = loss_of(1, before[1] + step) - loss_of(1, before[1] - step)
    assert float(moved[1, 4, 2]) == pytest.approx(-far if slope > 0 else far, rel=1e-3)


def test_rows_start_with_nothing_and_with_openings_in_turn_and_have_room(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    template, pad = chat.template, [chat.template.pad_id] * TOKENS
    suffixed = record_suffixed(chat, refusing(chat))
    assert len(PROMPTS) > len(OPENINGS)
    for index, prompt in enumerate(PROMPTS):
        opening = ("", *OPENINGS)[index % (len(OPENINGS) + 1)]
        plain = template.encode(prompt)
        cut = len(plain) - template.tail
        assert suffixed.heads[index] == [*plain[:cut], *pad, *plain[cut:]]
        row, begin = suffixed.rows[index], suffixed.begins[index]
        assert row[:cut] + row[cut + TOKENS : begin] == template.encode(prompt, opening)
        said = template.decode(row[begin:-1]).strip()
        assert said == REFUSAL and row[-1] == min(chat.stop_ids)


def test_a_search_leaves_the_weights_without_gradient(tiny: Callable[[str], ChatModel]) -> None:
    chat = with_lora(tiny("llama"))
    climb(chat, record_suffixed(chat, refusing(chat)).heads[:2], 2, seeded(0, 0))
    assert all(parameter.grad is None for parameter in trainable(chat).values())


def objective_for(chat: ChatModel, terms: Es2 = TERMS) -> Separation:
    harmful, harmless = refusing(chat), record(chat, PROMPTS, terms.response_tokens)
    distances = {2: 2.0, 4: 3.0}
    suffixed = terms.behind_suffixes(chat, harmful)
    terms = replace(terms, keep_refusal=0.0)  # the invented refusals have no states
    return Separation(
        terms, SETTINGS, (2, 4), harmful, harmless, distances, None, None, None, suffixed
    )


def test_half_the_batch_is_added_and_nothing_without_the_weight(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    objective = objective_for(chat)
    tuned = with_lora(chat)
    loss, metrics = objective.loss(tuned, 1)
    plain, less = replace(objective, suffixed=None).loss(tuned, 1)
    own = metrics["cross_entropy_suffixed"]
    assert float((loss - plain).detach()) == pytest.approx(TERMS.suffixed * own, rel=1e-3)
    assert not [name for name in less if "suffix" in name]
    assert isinstance(objective.suffixed, Suffixed)
    assert objective_for(chat, replace(TERMS, suffixed=0.0)).suffixed is None


def test_what_has_no_refusal_to_keep_says_so(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    with pytest.raises(Es2Error, match="suffixed keeps a refusal; set response_tokens above 0"):
        Es2(response_tokens=0, suffixed=1.0).behind_suffixes(chat, refusing(chat))


def test_training_makes_the_refusal_likelier_behind_what_is_found(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    settings = replace(SETTINGS, steps=32, lr=3e-2, rank=4, validate_every=0)
    objective = replace(objective_for(chat), settings=settings)
    objective = replace(objective, terms=replace(objective.terms, kl_weight=0.0, suffixed=3.0))
    progress = train(with_lora(chat), objective, settings, tmp_path)
    first, last = (progress.history[place]["cross_entropy_suffixed"] for place in (0, -1))
    assert last < 0.8 * first
