"""Drift, against two models' full logits, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

import pytest
import torch

from es2.capability.drift import drift
from es2.defences.reference import Reference, record
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from tiny import PROMPTS, with_lora


def slow(
    base: ChatModel, tuned: ChatModel, reference: Reference
) -> Mapping[str, Mapping[str, float]]:
    """Every token of every row, by the models' own forwards, sorted into spans by hand."""
    found: dict[str, list[tuple[float, bool, float, float]]] = {
        "prompt": [],
        "first": [],
        "opening": [],
        "response": [],
    }
    shared = 0
    while len({row[shared] for row in reference.rows}) == 1:
        shared += 1
    for row, first in zip(reference.rows, reference.firsts, strict=True):
        with torch.no_grad():
            p, q = (
                model.model(torch.tensor([row]), use_cache=False).logits[0].float().softmax(-1)
                for model in (base, tuned)
            )
        for position in range(len(row) - 1):
            token = row[position + 1]
            values = (
                float((p[position] * (p[position] / q[position]).log()).sum()),
                int(p[position].argmax()) == int(q[position].argmax()),
                -float(p[position, token].log()),
                -float(q[position, token].log()),
            )
            if shared <= position < first + 1 - base.template.tail:
                found["prompt"].append(values)
            if position == first:
                found["first"].append(values)
            if first <= position < first + 8:
                found["opening"].append(values)
            if first <= position:
                found["response"].append(values)
    spans = {}
    for name, rows in found.items():
        kl, agreed, before, after = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        ratio = math.exp(after - before)
        spans[name] = {"kl": kl, "agreement": agreed, "perplexity_ratio": ratio}
        spans[name]["positions"] = len(rows)
    return spans


def test_drift_is_that_of_two_models_token_by_token(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base, tuned = tiny(family), with_lora(tiny(family), seed=5)
    reference = record(base, PROMPTS, response_tokens=10, whole_prompt=True)
    expected = slow(base, tuned, reference)
    found = drift(base, tuned, reference)
    assert expected["response"]["kl"] > 1e-6
    assert asdict(found).keys() == expected.keys()
    for name, span in asdict(found).items():
        assert span == pytest.approx(expected[name], rel=2e-3, abs=1e-5), name


def test_a_reference_without_the_prompts_gives_the_same_answers_spans(
    tiny: Callable[[str], ChatModel],
) -> None:
    base, tuned = tiny("qwen3"), with_lora(tiny("qwen3"), seed=5)
    whole, rest = (
        asdict(drift(base, tuned, record(base, PROMPTS, response_tokens=10, whole_prompt=whole)))
        for whole in (True, False)
    )
    assert whole.pop("prompt") is not None and rest.pop("prompt") is None
    for name, span in whole.items():
        assert rest[name] == pytest.approx(span, rel=1e-3, abs=1e-6)


def test_a_model_has_not_drifted_from_itself(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("qwen3")
    found = drift(chat, chat, record(chat, PROMPTS, response_tokens=5, whole_prompt=True))
    for span in (found.prompt, found.first, found.opening, found.response):
        assert span is not None
        assert span.kl == pytest.approx(0.0, abs=1e-6)
        assert span.perplexity_ratio == pytest.approx(1.0, abs=1e-5)
        assert span.agreement == 1.0


def test_one_prompt_alone_has_a_first_position(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    found = drift(chat, chat, record(chat, PROMPTS[:1], response_tokens=5, whole_prompt=True))
    assert (found.first.positions, found.response.positions) == (1, 5)


def test_empty_answers_are_no_measurement(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    with pytest.raises(Es2Error, match="answers all prompts with nothing"):
        drift(chat, chat, record(chat, PROMPTS, response_tokens=0))
