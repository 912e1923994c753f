"""Drift, against two models' full logits, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from es2.capability.drift import drift
from es2.defences.reference import Reference, record
from es2.models.loading import ChatModel
from tiny import PROMPTS, with_lora


def slow(base: ChatModel, tuned: ChatModel, reference: Reference) -> dict[str, float]:
    """Every response token of every row, by the models' own forwards."""
    kls, firsts, nll, agreed = [], [], [0.0, 0.0], []
    for row, first in zip(reference.rows, reference.firsts, strict=True):
        with torch.no_grad():
            p, q = (
                model.model(torch.tensor([row]), use_cache=False).logits[0].float().softmax(-1)
                for model in (base, tuned)
            )
        for position in range(first, len(row) - 1):
            kls.append(float((p[position] * (p[position] / q[position]).log()).sum()))
            token = row[position + 1]
            for which, chances in enumerate((p, q)):
                nll[which] -= float(chances[position, token].log())
            agreed.append(int(p[position].argmax()) == int(q[position].argmax()))
            if position == first:
                firsts.append(kls[-1])
    return {
        "kl": sum(kls) / len(kls),
        "kl_first": sum(firsts) / len(firsts),
        "perplexity_ratio": math.exp((nll[1] - nll[0]) / len(kls)),
        "agreement": sum(agreed) / len(agreed),
    }


def test_drift_is_that_of_two_models_token_by_token(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base, tuned = tiny(family), with_lora(tiny(family), seed=5)
    reference = record(base, PROMPTS, response_tokens=5)
    expected = slow(base, tuned, reference)
    found = drift(base, tuned, reference)
    assert expected["kl"] > 1e-6
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=2e-3, abs=1e-5), name


def test_a_model_has_not_drifted_from_itself(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("qwen3")
    found = drift(chat, chat, record(chat, PROMPTS, response_tokens=5))
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.perplexity_ratio == pytest.approx(1.0, abs=1e-5)
    assert found.agreement == 1.0
