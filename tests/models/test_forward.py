"""A batch over a shared prefix equals one row at a time without padding, prefix or cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import cycle

import pytest
import torch
from torch import Tensor, nn
from transformers import FalconH1Config, FalconH1ForCausalLM

from es2.models.forward import (
    Held,
    forward,
    like_lengths,
    pad_right,
    prefix_cache,
    read_starts,
    shared_prefix,
    view_of,
)
from es2.models.loading import ChatModel
from tiny import FAMILIES, GEMMA_WINDOW, encode, make_chat, with_lora


def plainly(chat: ChatModel, row: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Every block's output and the final state of one row: nothing shared, cached or padded."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in chat.blocks
    ]
    final = chat.decoder(input_ids=torch.tensor([list(row)]), use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return [output[0] for output in outputs], final


def assert_same_as_one_by_one(chat: ChatModel, rows: Sequence[Sequence[int]], offset: int) -> None:
    layers = range(1, chat.depth + 1)
    with torch.no_grad():
        out = forward(chat, rows, layers=layers)
        assert out.offset == offset
        assert out.final is not None
        for place, row in enumerate(rows):
            states, final = plainly(chat, row)
            own = slice(0, len(row) - offset)
            for layer in layers:
                expected = states[layer - 1][offset:]
                torch.testing.assert_close(
                    out.states[layer][place, own], expected, rtol=1e-4, atol=1e-4
                )
            torch.testing.assert_close(out.final[place, own], final[offset:], rtol=1e-4, atol=1e-4)


def test_the_prefix_is_what_all_rows_start_with() -> None:
    assert shared_prefix([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 9]]) == 2


def test_the_prefix_leaves_every_row_a_token_of_its_own() -> None:
    assert shared_prefix([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert shared_prefix([[7]]) == 0


def test_ragged_rows_equal_one_row_at_a_time_at_every_layer(chat: ChatModel) -> None:
    rows = encode(chat)
    assert_same_as_one_by_one(chat, rows, offset=shared_prefix(rows))


ONE_LONG = [[1, 20, 21], [1, 20, *range(30, 62)], [1, 20, 22, 23], [1, 20, 24]]
"""Rows that are read in two groups."""


def test_a_long_row_among_short_ones_is_read_apart_and_equals_one_row_at_a_time(
    chat: ChatModel,
) -> None:
    read: list[tuple[int, ...]] = []
    handle = chat.decoder.register_forward_pre_hook(
        lambda _m, _i, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        stopped = forward(chat, ONE_LONG, layers=[1], stop=True)
    handle.remove()
    assert read == [(1, 2), (3, 2), (1, 32)]
    assert stopped.final is None and stopped.states[1].shape[:2] == (4, 32)
    assert_same_as_one_by_one(chat, ONE_LONG, offset=2)


def test_rows_without_a_common_start_equal_one_row_at_a_time(chat: ChatModel) -> None:
    rows = [row[index:] for index, row in enumerate(encode(chat))]
    assert_same_as_one_by_one(chat, rows, offset=0)


def test_ragged_rows_with_lora_equal_one_row_at_a_time(own_chat: ChatModel) -> None:
    tuned = with_lora(own_chat)
    rows = encode(tuned)
    assert_same_as_one_by_one(tuned, rows, offset=shared_prefix(rows))


@pytest.mark.parametrize("prefix", [GEMMA_WINDOW - 2, GEMMA_WINDOW - 1, GEMMA_WINDOW, 21])
def test_a_prefix_may_be_longer_than_the_sliding_window(
    shared: Callable[[str], ChatModel], prefix: int
) -> None:
    chat = shared("gemma3")
    head = [1, *range(20, 20 + prefix - 1)]
    rows = [[*head, 5, 6, 7], [*head, 9], [*head, *range(40, 60)]]
    assert_same_as_one_by_one(chat, rows, offset=prefix)


def test_every_layer_may_slide() -> None:
    chat = make_chat("mistral", sliding_window=6)
    head = list(range(20, 31))
    assert_same_as_one_by_one(chat, [[*head, 5, 6, 7], [*head, 9]], offset=11)


def test_keep_leaves_positions_of_the_prefix_to_be_read(chat: ChatModel) -> None:
    rows = encode(chat)
    out = forward(chat, rows, layers=[2], keep=1)
    assert out.offset == 1
    states, _ = plainly(chat, rows[3])
    picked = out.at(out.states[2], [3, 3], [1, len(rows[3]) - 1])
    torch.testing.assert_close(picked, states[1][[1, -1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [1, 3])
def test_stop_gives_the_same_states_and_runs_no_later_block(
    own_chat: ChatModel, layer: int
) -> None:
    rows = encode(own_chat)
    with torch.no_grad():
        # The prefix is one pass of its own; it is the batch's pass that stops.
        whole = forward(own_chat, rows, layers=[layer], keep=0)
        run: list[int] = []
        for index, block in enumerate(own_chat.blocks, start=1):
            block.register_forward_pre_hook(lambda _m, _i, index=index: run.append(index))
        stopped = forward(own_chat, rows, layers=[layer], stop=True, keep=0)
    assert run == list(range(1, layer + 1))
    assert stopped.final is None
    torch.testing.assert_close(stopped.states[layer], whole.states[layer], rtol=0, atol=0)


def test_stop_over_a_shared_prefix_gives_the_same_states(chat: ChatModel) -> None:
    rows = encode(chat)
    with torch.no_grad():
        whole = forward(chat, rows, layers=[1, 3])
        stopped = forward(chat, rows, layers=[1, 3], stop=True)
    assert stopped.offset == whole.offset > 0
    for layer in (1, 3):
        torch.testing.assert_close(stopped.states[layer], whole.states[layer], rtol=0, atol=0)


def loss_weights(rows: Sequence[Sequence[int]], offset: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(3, len(row) - offset, 32, generator=random) for row in rows]


@pytest.mark.parametrize("ragged", [False, True])
def test_the_gradient_through_a_shared_prefix_is_the_plain_gradient(
    own_chat: ChatModel, ragged: bool
) -> None:
    tuned = with_lora(own_chat)
    rows = ONE_LONG if ragged else encode(tuned)
    offset = shared_prefix(rows)
    weights = loss_weights(rows, offset)
    parameters = [p for p in tuned.model.parameters() if p.requires_grad]

    out = forward(tuned, rows, layers=[2, 4])
    assert out.final is not None
    loss = torch.zeros(())
    for place, (row, w) in enumerate(zip(rows, weights, strict=True)):
        own = slice(0, len(row) - offset)
        loss = loss + (w[0] * out.states[2][place, own]).mean()
        loss = loss + (w[1] * out.states[4][place, own]).mean()
        loss = loss + (w[2] * out.final[place, own]).mean()
    shared_way = torch.autograd.grad(loss, parameters)

    plain = torch.zeros(())
    for row, w in zip(rows, weights, strict=True):
        states, final = plainly(tuned, row)
        plain = plain + (w[0] * states[1][offset:]).mean() + (w[1] * states[3][offset:]).mean()
        plain = plain + (w[2] * final[offset:]).mean()
    plain_way = torch.autograd.grad(plain, parameters)

    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(shared_way, plain_way, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)
    # Were the prefix cut off from the graph, its keys would pass no gradient to the first block.
    assert all(float(gradient.abs().max()) > 0 for gradient in plain_way)


STARTS = {
    "alike": [[1, 20, 21], [1, 20, 21, 22, 23, 24], [1, 20]],
    "one long": [[1, 20, 21], [1, *range(20, 35)], [1, 20], [1, 20, 40, 41], [1, 20, 21, 22]],
    "nothing shared": [[7, 20, 21], [8, *range(20, 35)], [9, 20], [10]],
}
"""What rows start with; the second and third kind are read in two groups."""


def test_long_rows_are_apart_where_that_halves_what_rows_take_up() -> None:
    assert like_lengths([3, 20, 2, 4, 3]) == [[2, 0, 4, 3], [1]]
    assert like_lengths([3, 6, 2, 4, 3]) == [[0, 1, 2, 3, 4]]
    assert like_lengths([5]) == [[0]]
    assert like_lengths([4, 4]) == [[0, 1]]


@pytest.mark.parametrize("kind", STARTS)
def test_the_gradient_through_starts_that_are_gone_on_from_twice_is_the_plain_gradient(
    own_chat: ChatModel, family: str, kind: str
) -> None:
    tuned = with_lora(own_chat)
    parameters = [p for p in tuned.model.parameters() if p.requires_grad]
    prefixes = STARTS[kind]
    twice = [(0, [5, 6, 7]), (2, [9]), (1, [8, 5]), (0, [30, 31])]
    starts = read_starts(tuned, prefixes, 9)
    if family == "gemma3":  # padding takes up room in a sliding window
        assert starts is None
        return
    assert starts is not None
    rows = [prefixes[place] + tail for place, tail in twice]
    out = forward(tuned, rows, starts=starts.pick([place for place, _ in twice]))
    assert out.final is not None
    ends = [len(row) - 1 for row in rows]
    shared_way = torch.autograd.grad(out.at(out.final, range(4), ends).square().mean(), parameters)
    plain = torch.stack([plainly(tuned, row)[1][-1] for row in rows])
    plain_way = torch.autograd.grad(plain.square().mean(), parameters)
    for mine, theirs in zip(shared_way, plain_way, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)


def test_a_cache_view_leaves_the_shared_cache_as_it_was(chat: ChatModel) -> None:
    rows = encode(chat)
    with torch.no_grad():
        cache = prefix_cache(chat, rows[0][:10])
        assert cache is not None
        before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        lengths = [layer.get_seq_length() for layer in cache.layers]
        view = view_of(cache, 3)
        chat.decoder(input_ids=torch.tensor([[5, 6], [7, 8], [9, 9]]), past_key_values=view)
    assert view.get_seq_length() == 12
    assert [layer.get_seq_length() for layer in cache.layers] == lengths
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_a_model_with_recurrent_state_is_run_without_sharing() -> None:
    chat = make_chat("llama")
    config = FalconH1Config(
        vocab_size=len(chat.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )
    torch.manual_seed(0)
    hybrid = ChatModel("hybrid", FalconH1ForCausalLM(config).eval(), chat.tokenizer)
    with torch.no_grad():
        assert prefix_cache(hybrid, encode(hybrid)[0][:5]) is None
    assert_same_as_one_by_one(hybrid, encode(hybrid), offset=0)


def test_gradient_checkpointing_is_run_without_sharing_and_gives_the_same_gradient(
    tiny: Callable[[str], ChatModel],
) -> None:
    tuned = with_lora(tiny("llama"))
    rows = encode(tuned)
    length = shared_prefix(rows)
    parameters = [p for p in tuned.model.parameters() if p.requires_grad]

    def gradient(offset: int) -> tuple[Tensor, ...]:
        out = forward(tuned, rows, layers=[2])
        assert out.final is not None
        assert out.offset == offset
        last = [len(row) - 1 for row in rows]
        places = range(len(rows))
        loss = (
            out.at(out.states[2], places, last).square().mean()
            + out.at(out.final, places, last).sin().mean()
        )
        return torch.autograd.grad(loss, parameters)

    plain = gradient(length)
    tuned.model.train()
    tuned.inner.gradient_checkpointing_enable({"use_reentrant": False})
    for mine, theirs in zip(gradient(0), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_rows_are_padded_at_their_end() -> None:
    assert pad_right([[1, 2, 3], [4]], pad_id=0).tolist() == [[1, 2, 3], [4, 0, 0]]


def test_no_token_of_a_row_sees_its_padding(chat: ChatModel) -> None:
    rows = encode(chat)[:3]
    other = copy.copy(chat)
    other.template = copy.copy(chat.template)
    object.__setattr__(other.template, "pad_id", 77)
    with torch.no_grad():
        one, two = forward(chat, rows, layers=[4]), forward(other, rows, layers=[4])
    for place, row in enumerate(rows):
        own = slice(0, len(row) - one.offset)
        assert torch.equal(one.states[4][place, own], two.states[4][place, own])


def test_every_family_is_covered() -> None:
    assert set(FAMILIES) == {"llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"}
    assert isinstance(make_chat("phi3").blocks, nn.ModuleList)


def test_what_is_held_is_not_computed_again_and_changes_nothing(
    chat: ChatModel, family: str
) -> None:
    head = [1, *range(20, 32)]
    held, read = Held(), []
    handle = chat.decoder.register_forward_pre_hook(
        lambda _m, _i, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    passes = [
        [[*head, 40, 41, 42], [*head, 40, 43, 44, 45]],
        [[*head, 40, 46, 47], [*head, 40, 48, 49]],  # the same prefix
        [[*head, 50, 51], [*head, 52, 53]],  # a shorter one
        [[*head, 60, 61, 62, 63], [*head, 60, 61, 62, 64]],  # a longer one
        [[9, 8, 7, 6], [9, 8, 7, 5]],  # another
    ]
    with torch.no_grad():
        for rows in passes:
            out = forward(chat, rows, held=held)
            assert out.final is not None and isinstance(out.offset, int)
            for place, row in enumerate(rows):
                _, final = plainly(chat, row)
                read.pop()
                own = slice(0, len(row) - out.offset)
                torch.testing.assert_close(
                    out.final[place, own], final[out.offset :], rtol=1e-4, atol=1e-4
                )
    handle.remove()
    if family != "gemma3":  # whose window the longer prefixes outgrow
        assert read == [14, 3, 2, 2, 3, 1, 3, 1]


@pytest.mark.parametrize("kind", STARTS)
def test_rows_go_on_from_starts_of_their_own(chat: ChatModel, family: str, kind: str) -> None:
    prefixes = STARTS[kind]
    tails = cycle([[5, 6, 7], [8], [9, 10]])
    rows = [[*prefix, *tail] for prefix, tail in zip(prefixes, tails, strict=False)]
    held = Held()
    starts = held.starts(chat, prefixes, 9)
    if family == "gemma3":  # padding takes up room in a sliding window
        assert starts is None
        return
    assert starts is not None and starts is held.starts(chat, prefixes, 9)
    for _ in range(2):  # a pass leaves them as they were
        with torch.no_grad():
            out = forward(chat, rows, layers=[2], starts=starts)
            assert out.final is not None
            for place, row in enumerate(rows):
                states, final = plainly(chat, row)
                cut = len(prefixes[place])
                own = slice(0, len(row) - cut)
                torch.testing.assert_close(
                    out.states[2][place, own], states[1][cut:], rtol=1e-4, atol=1e-4
                )
                last = out.at(out.final, [place], [len(row) - 1])[0]
                torch.testing.assert_close(last, final[-1], rtol=1e-4, atol=1e-4)
