"""The base model's record: its own answers, and hidden states that give its logits back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from es2.defences.reference import kl_divergence, record
from es2.models.blocks import logits
from es2.models.forward import shared_prefix
from es2.models.generation import generate
from es2.models.loading import ChatModel
from tiny import PROMPTS, encode


@pytest.mark.parametrize("whole_prompt", [False, True])
def test_recorded_states_give_the_models_own_logits(chat: ChatModel, whole_prompt: bool) -> None:
    reference = record(chat, PROMPTS, response_tokens=4, whole_prompt=whole_prompt)
    assert len(reference) == len(PROMPTS)
    for row, start, hidden in zip(reference.rows, reference.starts, reference.hidden, strict=True):
        with torch.no_grad():
            own = chat.inner(torch.tensor([row])).logits[0, start:]
        torch.testing.assert_close(logits(chat.model, hidden), own, rtol=1e-4, atol=1e-4)


def test_rows_are_the_prompt_then_the_models_greedy_answer(chat: ChatModel) -> None:
    reference = record(chat, PROMPTS, response_tokens=5)
    heads = encode(chat)
    answers = generate(chat, heads, 5)
    assert reference.rows == [head + answer for head, answer in zip(heads, answers, strict=True)]
    assert reference.firsts == [len(head) - 1 for head in heads]


def test_without_a_response_the_last_prompt_position_is_the_one_of_interest(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    reference = record(chat, PROMPTS, response_tokens=0)
    assert reference.rows == encode(chat)
    assert reference.starts == reference.firsts
    assert [len(hidden) for hidden in reference.hidden] == [1] * len(PROMPTS)


def test_a_whole_prompt_starts_where_the_rows_part(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    reference = record(chat, PROMPTS, response_tokens=0, whole_prompt=True)
    start = shared_prefix(reference.rows)
    assert set(reference.starts) == {start}
    assert start > 5
    assert [len(hidden) for hidden in reference.hidden] == [
        len(row) - start for row in reference.rows
    ]


def test_recording_leaves_nothing_that_needs_a_gradient(shared: Callable[[str], ChatModel]) -> None:
    reference = record(shared("llama"), PROMPTS[:2], response_tokens=2)
    assert not any(hidden.requires_grad for hidden in reference.hidden)
    # A view would keep the whole batch's states in memory.
    assert all(hidden.untyped_storage().nbytes() == hidden.nbytes for hidden in reference.hidden)


def test_the_batch_size_changes_nothing(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("gemma3")
    small = ChatModel(chat.name, chat.model, chat.tokenizer, batch_size=2)
    one, two = (record(model, PROMPTS, 3, whole_prompt=True) for model in (chat, small))
    assert one.rows == two.rows
    for mine, theirs in zip(one.hidden, two.hidden, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_kl_of_two_coins_is_the_closed_form_and_takes_the_base_first() -> None:
    base, tuned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * torch.tensor(0.5 / 0.9).log() + 0.5 * torch.tensor(0.5 / 0.1).log()
    assert kl_divergence(base, tuned).item() == pytest.approx(expected.item(), rel=1e-5)
    assert kl_divergence(tuned, base).item() != pytest.approx(expected.item(), rel=1e-2)
    # Logits are free of any constant.
    assert kl_divergence(base + 7, tuned - 3).item() == pytest.approx(expected.item(), rel=1e-5)
