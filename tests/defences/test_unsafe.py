"""Harmful answers of the model's own: openings in turn, until it goes along."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from es2.attacks.target import OPENINGS
from es2.defences.unsafe import Unsafe, unsafe_answers
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from material import HARMFUL, begun, make_material

Shared = Callable[[str], ChatModel]


def answers(chat: ChatModel, refuses: Callable[[str], bool], tokens: int = 4) -> list[Unsafe]:
    return unsafe_answers(make_material(chat, refuses), HARMFUL, tokens, OPENINGS)


def test_a_model_that_goes_along_answers_behind_the_first_opening(chat: ChatModel) -> None:
    assert answers(chat, lambda text: False) == begun(chat, HARMFUL, 4)


def test_where_it_refuses_the_next_opening_is_tried_and_where_it_refuses_all_it_is_left_out(
    shared: Shared,
) -> None:
    chat = shared("llama")
    decode = chat.template.decode
    first, second, third, fourth = (begun(chat, HARMFUL, 4, opening) for opening in OPENINGS)
    one, two, never = 1, 4, 6
    refused = {decode(first[i].response) for i in (one, two, never)}
    refused |= {decode(second[i].response) for i in (two, never)}
    refused |= {decode(group[never].response) for group in (third, fourth)}
    found = answers(chat, refused.__contains__)
    assert [answer.prompt for answer in found] == [p for i, p in enumerate(HARMFUL) if i != never]
    assert not refused & {decode(answer.response) for answer in found}
    assert found[one] == second[one] and found[two] == third[two]
    assert found[0] == first[0]


def test_progress_reaches_every_prompt_once(shared: Shared) -> None:
    done: list[int] = []
    chat = shared("llama")
    refused = {chat.template.decode(begun(chat, HARMFUL, 2)[0].response)}
    material = make_material(chat, refused.__contains__)
    unsafe_answers(material, HARMFUL, 2, OPENINGS[:1], done.append)
    assert sum(done) == len(HARMFUL)


def test_without_tokens_an_answer_is_its_opening(shared: Shared) -> None:
    found = answers(shared("llama"), lambda text: False, tokens=0)
    assert len(found) == len(HARMFUL) and not any(answer.tail for answer in found)


def test_a_model_that_always_refuses_leaves_nothing_to_train_against(shared: Shared) -> None:
    with pytest.raises(
        Es2Error, match="refuses all 8 harmful prompts, also behind 'Sure'"
    ) as error:
        answers(shared("llama"), lambda text: True)
    assert "\n" not in str(error.value)
