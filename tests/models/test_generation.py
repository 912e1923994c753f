"""Batched decoding gives each row what transformers' own `generate` gives it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
import torch
from torch import Tensor

from es2.models.activations import Edit, edit
from es2.models.blocks import logits
from es2.models.generation import Sampling, generate, in_batches
from es2.models.loading import ChatModel
from tiny import encode, make_chat

NEW = 12


def alone(chat: ChatModel, row: Sequence[int], stops: Sequence[int], new: int = NEW) -> list[int]:
    """transformers' greedy continuation of one row, up to a stop token."""
    ids = torch.tensor([list(row)])
    out = chat.inner.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
    )
    found = out[0, len(row) :].tolist()
    return found[: first_of(stops, found)]


def first_of(stops: Sequence[int], tokens: Sequence[int]) -> int:
    """Where the first stop token stands; the number of tokens if there is none."""
    return next((i for i, token in enumerate(tokens) if token in stops), len(tokens))


def stopping_at(chat: ChatModel, stops: Sequence[int]) -> ChatModel:
    """The same model with other stop tokens."""
    other = ChatModel(chat.name, chat.model, chat.tokenizer)
    object.__setattr__(other, "stop_ids", frozenset(stops))
    return other


def test_greedy_rows_equal_transformers_row_by_row(chat: ChatModel) -> None:
    rows = encode(chat)
    expected = [alone(chat, row, sorted(chat.stop_ids)) for row in rows]
    assert generate(chat, rows, NEW) == expected
    assert len({tuple(tokens) for tokens in expected}) == len(rows)


def test_rows_that_finish_at_different_times_leave_the_batch_and_change_nothing(
    chat: ChatModel,
) -> None:
    rows = encode(chat)
    free = [alone(chat, row, []) for row in rows]
    # The two stop tokens that part the rows the most: some end at once, others later or never.
    stops = max(
        combinations(sorted({token for tokens in free for token in tokens}), 2),
        key=lambda pair: len({first_of(pair, tokens) for tokens in free}),
    )
    expected = [alone(chat, row, stops) for row in rows]
    assert len({len(tokens) for tokens in expected}) >= 3
    assert generate(stopping_at(chat, stops), rows, NEW) == expected


def test_finished_rows_are_run_no_further(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    rows = encode(chat)[:3]  # of like length, so one batch
    free = generate(stopping_at(chat, []), rows, 4)
    sizes: list[int] = []

    def count(stream: Tensor) -> Tensor:
        sizes.append(stream.shape[0])
        return stream

    generate(stopping_at(chat, [free[0][0]]), rows, 4, edits={1: count})
    gone = sum(tokens[0] == free[0][0] for tokens in free)
    assert sizes[0] == len(rows)
    assert sizes[1] == len(rows) - gone


def test_a_batch_of_one_and_small_batches_give_the_same(chat: ChatModel) -> None:
    rows = encode(chat)
    whole = generate(chat, rows, NEW)
    assert [generate(chat, [row], NEW)[0] for row in rows] == whole
    small = ChatModel(chat.name, chat.model, chat.tokenizer, batch_size=2)
    assert generate(small, rows, NEW) == whole


def test_padding_between_prefix_and_row_does_not_eat_into_a_sliding_window() -> None:
    for window in (16, 40, 64, 200):
        chat = make_chat("mistral", sliding_window=window)
        head = list(range(20, 50))
        rows = [[*head, 5], [*head, *range(60, 90)]]
        expected = [alone(chat, row, sorted(chat.stop_ids)) for row in rows]
        assert generate(chat, rows, NEW) == expected


def last_token_edits(scale: float) -> dict[int, Edit]:
    """A push of the last token, at two layers, that depends on the state it finds."""
    shift = torch.linspace(-scale, scale, 32)

    def change(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, -1] = changed[:, -1] + shift * changed[:, -1].norm(dim=-1, keepdim=True)
        return changed

    return {2: change, 3: change}


def slowly(chat: ChatModel, row: Sequence[int], new: int) -> list[int]:
    """Greedy decoding without any cache: the last prompt token and all later ones are edited."""
    prompt, tokens = len(row), list(row)
    shift = torch.linspace(-0.2, 0.2, 32)

    def change(stream: Tensor) -> Tensor:
        changed = stream.clone()
        own = changed[:, prompt - 1 :]
        changed[:, prompt - 1 :] = own + shift * own.norm(dim=-1, keepdim=True)
        return changed

    with torch.no_grad(), edit(chat.blocks, {2: change, 3: change}):
        for _ in range(new):
            final = chat.decoder(input_ids=torch.tensor([tokens]), use_cache=False)
            token = int(logits(chat.model, final.last_hidden_state[0, -1]).argmax())
            if token in chat.stop_ids:
                break
            tokens.append(token)
    return tokens[prompt:]


def test_edited_rows_in_a_batch_equal_edited_rows_alone_without_a_cache(chat: ChatModel) -> None:
    rows = encode(chat)
    edits = last_token_edits(0.2)
    batched = generate(chat, rows, NEW, edits)
    assert batched == [slowly(chat, row, NEW) for row in rows]
    assert batched == [generate(chat, [row], NEW, edits)[0] for row in rows]
    assert batched != generate(chat, rows, NEW)


def test_edits_end_with_the_call(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    rows = encode(chat)
    before = generate(chat, rows, 4)
    generate(chat, rows, 4, last_token_edits(0.5))
    assert generate(chat, rows, 4) == before


def test_sampling_is_reproduced_by_its_seed(chat: ChatModel) -> None:
    rows = encode(chat)
    one = generate(chat, rows, NEW, sampling=Sampling(seed=7))
    assert generate(chat, rows, NEW, sampling=Sampling(seed=7)) == one
    assert generate(chat, rows, NEW, sampling=Sampling(seed=8)) != one


def test_sampling_does_not_touch_the_global_random_state(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = shared("llama")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    generate(chat, encode(chat), 3, sampling=Sampling(seed=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.0), Sampling(temperature=1e-4)])
def test_sampling_from_the_likeliest_alone_is_greedy(chat: ChatModel, sampling: Sampling) -> None:
    rows = encode(chat)
    assert generate(chat, rows, NEW, sampling=sampling) == generate(chat, rows, NEW)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_tokens_are_drawn_as_often_as_the_model_says(
    shared: Callable[[str], ChatModel], temperature: float, top_p: float
) -> None:
    chat = shared("llama")
    row = encode(chat)[0]
    many = stopping_at(chat, [])
    many.batch_size = draws = 4000
    found = generate(many, [row] * draws, 1, sampling=Sampling(temperature, top_p, seed=0))
    counts = Counter(token for (token,) in found)

    with torch.no_grad():
        scores = chat.inner(torch.tensor([row])).logits[0, -1] / temperature
    chances = scores.softmax(-1)
    order = chances.argsort(descending=True).tolist()
    nucleus, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += float(chances[token])
    assert set(counts) <= set(nucleus)
    for token in nucleus[:5]:
        expected = float(chances[token]) / mass
        spread = (expected * (1 - expected) / draws) ** 0.5
        assert abs(counts[token] / draws - expected) < 4 * spread


def test_results_come_back_in_the_order_of_the_rows(shared: Callable[[str], ChatModel]) -> None:
    chat = ChatModel("x", shared("llama").model, shared("llama").tokenizer, batch_size=3)
    lengths = [5, 1, 4, 2, 3, 9, 7]
    rows = [[0] * length for length in lengths]
    done: list[int] = []
    assert (
        in_batches(chat, rows, lambda batch: [lengths[place] for place in batch], done.append)
        == lengths
    )
    assert sum(done) == len(rows)


def test_no_row_of_a_batch_is_over_twice_as_long_as_another(
    shared: Callable[[str], ChatModel],
) -> None:
    batches: list[list[int]] = []

    def function(batch: list[int]) -> list[int]:
        batches.append(sorted(lengths[place] for place in batch))
        return batch

    lengths = [3, 40, 6, 90, 5, 41, 7]
    in_batches(shared("llama"), [[0] * length for length in lengths], function)
    assert batches == [[3, 5, 6], [7], [40, 41], [90]]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["device", "host"])
def test_a_batch_that_does_not_fit_is_halved_once_and_the_size_is_kept(
    shared: Callable[[str], ChatModel], error: RuntimeError
) -> None:
    chat = ChatModel("x", shared("llama").model, shared("llama").tokenizer, batch_size=16)
    tried: list[int] = []

    def function(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > 8:
            raise error
        return [rows[place][0] for place in batch]

    rows = [[index] for index in range(20)]
    assert in_batches(chat, rows, function) == list(range(20))
    assert tried == [16, 8, 8, 4]
    assert in_batches(chat, rows, function) == list(range(20))
    assert tried[4:] == [8, 8, 4]


def test_one_row_that_does_not_fit_is_an_error(shared: Callable[[str], ChatModel]) -> None:
    chat = ChatModel("x", shared("llama").model, shared("llama").tokenizer, batch_size=2)

    def function(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(chat, [[1], [2]], function)


def test_other_errors_in_a_batch_are_not_taken_for_a_lack_of_memory(
    shared: Callable[[str], ChatModel],
) -> None:
    chat = ChatModel("x", shared("llama").model, shared("llama").tokenizer, batch_size=2)

    def function(batch: list[int]) -> list[int]:
        raise RuntimeError("shape '[2, 3]' is invalid")

    with pytest.raises(RuntimeError, match="is invalid"):
        in_batches(chat, [[1], [2]], function)
    assert chat.batch_size == 2
