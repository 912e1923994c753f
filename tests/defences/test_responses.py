"""What is read of given responses, against probabilities taken one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from es2.defences.responses import Responses, read_responses
from es2.models.forward import forward
from es2.models.loading import ChatModel
from tiny import PROMPTS, chances

SAID = ["Sure, here it is", "No", "I would rather not say."]


def responses(chances: list[list[float]], tokens: list[int]) -> Responses:
    opening = torch.tensor([True] + [False] * (len(tokens) - 1))
    return Responses(torch.tensor(chances).log(), torch.tensor(tokens), opening)


def test_tokens_of_every_response_are_read_at_their_place_in_the_batch(chat: ChatModel) -> None:
    rows = [chat.template.encode(p, s) for p, s in zip(PROMPTS[:3], SAID, strict=True)]
    begins = [len(chat.template.encode(prompt)) for prompt in PROMPTS[:3]]
    batch = [chat.template.encode(PROMPTS[3]), *rows]
    with torch.no_grad():
        out = forward(chat, batch, keep=min(begins) - 1)
        found = read_responses(chat, out, rows, begins, shift=1)
    own = [
        (float(chances(chat, row)[place - 1, row[place]]), place == begin)
        for row, begin in zip(rows, begins, strict=True)
        for place in range(begin, len(row))
    ]
    mean, first = found.cross_entropy()
    assert float(mean) == pytest.approx(-sum(c for c, _ in own) / len(own), rel=1e-4)
    firsts = [-c for c, opens in own if opens]
    assert len(firsts) == 3
    assert first == pytest.approx(sum(firsts) / 3, rel=1e-4)
    paid = [-math.log1p(-math.exp(c)) if c >= -5 else 0.0 for c, _ in own]
    assert float(found.refrain()) == pytest.approx(sum(paid) / len(paid), rel=1e-3, abs=1e-6)


def test_a_first_token_may_weigh_more() -> None:
    found = responses([[0.5, 0.5], [0.9, 0.1]], [0, 1])
    mean, first = found.cross_entropy(first=3.0)
    assert float(mean) == pytest.approx(-(3 * math.log(0.5) + math.log(0.1)) / 4)
    assert first == pytest.approx(-math.log(0.5))


def test_refraining_costs_more_the_likelier_a_token_and_nothing_where_it_is_unlikely() -> None:
    found = responses([[0.5, 0.5], [0.9, 0.1], [0.999, 0.001]], [0, 1, 1])
    assert float(found.refrain()) == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 3)


def test_refraining_from_what_is_certain_has_a_finite_gradient() -> None:
    scores = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    found = Responses(scores, torch.tensor([0]), torch.tensor([True]))
    cost = found.refrain()
    cost.backward()
    assert float(cost.detach()) == pytest.approx(60 - math.log(2))
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([[1.0, -0.5, -0.5]]))
