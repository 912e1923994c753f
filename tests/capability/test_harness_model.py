"""es2's forward under the harness gives the numbers of the harness's own wrapper."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from es2.capability.harness_model import HarnessModel
from es2.models.loading import ChatModel
from tiny import PROMPTS

LETTERS = ("A", "B", "C")
OPTIONS = ("a river", "the old lighthouse keeper", "bread", "bread and rain")


def requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def compare(chat: ChatModel, pairs: list[tuple[str, str]], **named: Any) -> None:
    own = HarnessModel(chat, True, 2)
    harness = HFLM(
        pretrained=chat.inner, tokenizer=deepcopy(chat.tokenizer), add_bos_token=False, **named
    )
    if named:
        own._max_length = named["max_length"]
    found = own.loglikelihood(requests(pairs), disable_tqdm=True)
    expected = harness.loglikelihood(requests(pairs), disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx(
        [score for score, _ in expected], rel=1e-4, abs=1e-4
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(score, 3) for score, _ in expected}) > 1


def test_letters_after_a_template_score_as_in_the_harness(chat: ChatModel) -> None:
    compare(chat, [(chat.template.render(p), letter) for p in PROMPTS for letter in LETTERS])


def test_options_of_several_tokens_score_as_in_the_harness(chat: ChatModel) -> None:
    mixed = [(chat.template.render(p), option) for p in PROMPTS[:3] for option in OPTIONS]
    compare(chat, [*mixed, (chat.template.render(PROMPTS[3]), "A"), ("no template", " A")])


def test_what_a_greedy_model_would_write_is_marked(chat: ChatModel) -> None:
    context = chat.template.render("Hi")
    tokens = [chat.tokenizer.decode([token]) for token in range(4, len(chat.tokenizer))]
    found = HarnessModel(chat, True, 2).loglikelihood(
        requests([(context, token) for token in dict.fromkeys(tokens) if token.isalnum()]), True
    )
    best = max(found)
    assert all(not greedy or score == best[0] for score, greedy in found)


def test_a_row_that_is_too_long_loses_its_start_as_in_the_harness(chat: ChatModel) -> None:
    long = chat.template.render(" ".join(PROMPTS))
    compare(chat, [(long, option) for option in (*LETTERS, *OPTIONS)], max_length=24)


def test_the_models_tokenizer_is_left_as_it_was(chat: ChatModel) -> None:
    before = (chat.tokenizer.pad_token, chat.tokenizer.padding_side)
    model = HarnessModel(chat, True, 2)
    model.tokenizer.pad_token, model.tokenizer.padding_side = "x", "left"
    assert (chat.tokenizer.pad_token, chat.tokenizer.padding_side) == before


def test_the_harness_templates_a_prompt_as_es2_does(chat: ChatModel) -> None:
    model = HarnessModel(chat, True, 2)
    for prompt in PROMPTS:
        text = model.apply_chat_template([{"role": "user", "content": prompt}])
        assert text == chat.template.render(prompt)
        assert model.tok_encode(text) == chat.template.encode(prompt)
