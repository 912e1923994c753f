"""How responses in training begin: openings and answers under way, against the model's own words."""

from __future__ import annotations

from collections.abc import Callable

from es2.attacks.target import OPENINGS
from es2.defences.beginnings import DEPTHS, harmful_beginnings, harmless_beginnings
from es2.defences.es2 import Es2
from es2.defences.reference import record
from es2.models.loading import ChatModel
from material import HARMFUL, begun, make_material
from tiny import PROMPTS


def test_an_answer_is_cut_at_each_depth_behind_the_opening_that_it_was_given_behind(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    first, second = (begun(chat, HARMFUL, max(DEPTHS), opening) for opening in OPENINGS[:2])
    refused = chat.template.decode(first[1].response)
    assert [chat.template.decode(one.response) for one in first].count(refused) == 1
    material = make_material(chat, lambda text: text == refused)
    found = harmful_beginnings(material, record(chat, HARMFUL, 0))
    for place, start in enumerate(found):
        answer = second[1] if place == 1 else first[place]
        depth = DEPTHS[place % len(DEPTHS)]
        assert start == [*answer.start, *answer.tail[:depth]]


def test_where_all_openings_are_refused_a_response_begins_with_one_of_them_in_turn(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    done: list[int] = []
    material = make_material(chat, lambda text: True)
    found = harmful_beginnings(material, record(chat, HARMFUL, 0), done.append)
    openings = [chat.template.encode_response(text) for text in OPENINGS]
    assert found == [openings[place % len(openings)] for place in range(len(HARMFUL))]
    assert sum(done) == len(HARMFUL)


def test_harmless_answers_are_begun_as_deep_and_every_other_one_is_an_opening(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    answers = record(chat, PROMPTS, max(DEPTHS))
    found = harmless_beginnings(chat, answers)
    assert len(found) == len(PROMPTS) > 3
    for place, start in enumerate(found):
        own = answers.rows[place][answers.firsts[place] + 1 :]
        opening = chat.template.encode_response(OPENINGS[place // 2 % len(OPENINGS)])
        assert start == (own[: DEPTHS[place // 2 % len(DEPTHS)]] if place % 2 else opening)


def test_harmless_answers_are_recorded_as_deep_as_harmful_ones_begin() -> None:
    none = {"after_start": 0.0, "suffixed": 0.0}
    for name in none:
        assert Es2(response_tokens=3, **(none | {name: 1.0})).harmless_tokens == max(DEPTHS)
    assert Es2(response_tokens=3, **none).harmless_tokens == 3
