"""The base's own texts, and its inner states beside those of the model in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from es2.attacks.target import AFFIRMATION
from es2.defences.base import unless_few
from es2.defences.inner_reference import (
    Texts,
    before_and_now,
    drift,
    layers_at,
    own_texts,
    places,
    texts_to_train_on,
    unsafe_texts,
)
from es2.defences.trainer import TrainSettings, frozen_copy, unfreeze
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.loading import ChatModel
from material import HARMFUL, begun, make_material
from tiny import PROMPTS, encode, streams, with_lora


def test_texts_are_the_prompt_and_what_the_model_says(chat: ChatModel) -> None:
    texts, heads = own_texts(chat, PROMPTS, 4), encode(chat)
    tails = generate(chat, heads, 4)
    assert texts.rows == [head + tail for head, tail in zip(heads, tails, strict=True)]
    assert texts.begins == [len(head) for head in heads]
    assert texts.responses() == tails


def test_unsafe_texts_that_refuse_and_refusals_that_do_not_are_left_out(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    unsafe = unsafe_texts(chat, begun(chat, HARMFUL, 4, AFFIRMATION))
    declined = own_texts(chat, HARMFUL, 4)
    decode = chat.template.decode
    told = {decode(texts.responses()[i]) for texts in (unsafe, declined) for i in (0, 3)}
    bad, good = texts_to_train_on(
        make_material(chat, told.__contains__), 4, [AFFIRMATION], 8 / len(PROMPTS)
    )
    assert 0 < len(bad) < len(HARMFUL)
    assert not told & {decode(response) for response in bad.responses()}
    answers, refusals = good.rows[: len(PROMPTS)], good.rows[len(PROMPTS) :]
    assert answers == own_texts(chat, PROMPTS, 4).rows
    assert declined.rows[0] in refusals
    assert declined.rows[3] in refusals
    assert all(decode(response) in told for response in good.responses()[len(PROMPTS) :])


def test_layers_are_shares_of_the_depth_or_those_given() -> None:
    assert layers_at(32, None, (10 / 32, 20 / 32)) == (10, 20)
    assert layers_at(30, None, (10 / 32, 20 / 32)) == (9, 19)
    assert layers_at(4, None, (10 / 32, 20 / 32)) == (1, 2)
    assert layers_at(1, None, (10 / 32, 20 / 32)) == (1,)
    assert layers_at(4, (3, 1), (0.5,)) == (1, 3)
    for wrong in ((0,), (5,), ()):
        with pytest.raises(Es2Error):
            layers_at(4, wrong, (0.5,))


def test_drift_is_the_mean_distance_of_states_read_by_two_models(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base, tuned = tiny(family), with_lora(tiny(family))
    texts = own_texts(base, PROMPTS, 3)
    before, now = before_and_now(tuned, None, texts.rows, range(1, 5))
    found = drift(before, now, (1, 4), places(texts.rows, texts.begins))
    distances = []
    with torch.no_grad():
        for row, begin in zip(texts.rows, texts.begins, strict=True):
            then, after = streams(base, row), streams(tuned, row)
            for layer in (1, 4):
                distances += [*(after[layer - 1] - then[layer - 1])[begin:].norm(dim=-1)]
    assert float(found.detach()) == pytest.approx(float(torch.stack(distances).mean()), rel=1e-4)
    assert float(found.detach()) > 1e-3
    assert not any(states.requires_grad for states in before.states.values())
    assert all(states.requires_grad for states in now.states.values())
    assert all(p.requires_grad for name, p in tuned.model.named_parameters() if "lora_" in name)


def test_the_copy_beside_full_fine_tuning_stays_as_it_was(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    assert frozen_copy(chat, TrainSettings(rank=1)) is None
    copied = frozen_copy(chat, TrainSettings(rank=0))
    assert copied is not None
    unfreeze(chat)
    rows = encode(chat)
    everywhere = places(rows, [chat.template.head] * len(rows))
    same = drift(*before_and_now(chat, copied, rows, (2, 4)), (2, 4), everywhere)
    assert float(same.detach()) == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for parameter in chat.blocks[2].parameters():
            parameter.mul_(1.1)
    with torch.no_grad():
        before, now = before_and_now(chat, copied, rows, (2, 4))
    assert float(drift(before, now, (2,), everywhere)) == pytest.approx(0, abs=1e-5)
    assert float(drift(before, now, (4,), everywhere)) > 0.01


def test_no_positions_have_not_drifted(tiny: Callable[[str], ChatModel]) -> None:
    """A model may end its answer at once."""
    chat = with_lora(tiny("llama"))
    silent = Texts(encode(chat), [len(row) for row in encode(chat)])
    with torch.no_grad():
        pair = before_and_now(chat, None, silent.rows, (2,))
    assert float(drift(*pair, (2,), places(silent.rows, silent.begins))) == 0


def test_a_rule_that_keeps_less_than_a_quarter_keeps_all() -> None:
    assert unless_few([1, 2], list(range(8))) == [1, 2]
    assert unless_few([1], list(range(8))) == list(range(8))
