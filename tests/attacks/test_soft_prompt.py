"""The soft prompt against finite differences and a slow way, and that it gets where it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from es2.attacks import SoftPrompt, Victim
from es2.attacks.soft_prompt import embedded, gradients, with_room
from es2.attacks.target import read_targets
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.loading import ChatModel
from tiny import PROMPTS

Shared = Callable[[str], ChatModel]
FIT = FitPrompts(list(PROMPTS), [], [], [])
ASKED = [
    Prompt(text, True, target="Why", category="", borderline=False, id=str(i), source="tests")
    for i, text in enumerate(PROMPTS[:4])
]


def rows_of(chat: ChatModel, tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    heads = [with_room(chat, prompt.text, tokens) for prompt in ASKED]
    target = chat.tokenizer("Why", add_special_tokens=False)["input_ids"]
    return heads, [list(target)] * len(heads)


def test_a_suffix_of_real_tokens_is_read_like_those_tokens(chat: ChatModel) -> None:
    heads, targets = rows_of(chat, 3)
    ids = torch.tensor([[20, 31, 42], [50, 21, 33], [60, 61, 62], [24, 25, 26]])
    found, _ = gradients(chat, heads, targets, embedded(chat, ids))
    tail = chat.template.tail
    written = [
        [*head[: -tail - 3], *suffix, *head[len(head) - tail :]]
        for head, suffix in zip(heads, ids.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        found, read_targets(chat, written, targets).losses.detach(), rtol=1e-3, atol=1e-4
    )


def test_the_gradient_is_that_of_finite_differences(shared: Shared) -> None:
    chat = shared("gemma3")
    heads, targets = rows_of(chat, 2)
    vectors = embedded(chat, torch.tensor([[20, 31]] * 4))
    _, gradient = gradients(chat, heads, targets, vectors)
    way = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    eps = 1e-2
    up, down = (gradients(chat, heads, targets, vectors + s * eps * way)[0] for s in (1, -1))
    slope = (up - down) / (2 * eps)
    torch.testing.assert_close((gradient * way).sum((1, 2)), slope, rtol=0.05, atol=5e-3)


def test_one_suffix_for_all_gets_the_sum_of_the_gradients(shared: Shared) -> None:
    chat = shared("llama")
    heads, targets = rows_of(chat, 2)
    one = embedded(chat, torch.tensor([[20, 31]]))
    _, each = gradients(chat, heads, targets, one.expand(4, -1, -1))
    _, total = gradients(chat, heads, targets, one)
    torch.testing.assert_close(total[0], each.sum(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("start", ["words", "random"])
def test_the_loss_falls_until_the_model_says_the_target(shared: Shared, start: str) -> None:
    attack = SoftPrompt(
        tokens=16,
        lr=0.05,
        steps=100,
        checkpoints=2,
        start=start,
        max_new_tokens=3,  # type: ignore[arg-type]
    )
    early, late = attack.run(Victim(shared("llama"), FIT), ASKED)
    for before, after in zip(early, late, strict=True):
        best = list(accumulate(after.losses, min))
        assert best[-1] < 0.5 * best[0]
        assert after.losses[: len(before.losses)] == before.losses
        assert len(after.losses) == after.budget.steps == 100
        assert after.norm and after.norm > 0
    # Greedy answers start with the target for most prompts: the model is not aligned.
    assert sum(one.completion.startswith("Why") for one in late) >= 3


def test_a_universal_suffix_never_sees_the_prompts_it_is_tried_on(shared: Shared) -> None:
    attack = SoftPrompt(
        tokens=4, lr=0.05, steps=20, checkpoints=1, sharing="universal", fit=4, max_new_tokens=2
    )
    victim = Victim(shared("qwen2"), FIT)
    (whole,) = attack.run(victim, ASKED)
    (other,) = attack.run(victim, [replace(ASKED[0], text="Tell me a riddle", id="r")])
    assert whole[0].losses == whole[1].losses == other[0].losses
    assert whole[0].norm == other[0].norm
    assert min(whole[0].losses) < whole[0].losses[0]
