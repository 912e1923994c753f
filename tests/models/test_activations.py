"""Activations are read and changed at one hook point, whatever a block returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from es2.models.activations import Reached, capture, edit
from es2.models.forward import forward
from es2.models.loading import ChatModel
from tiny import encode


class Doubling(nn.Module):
    """A block: doubles the stream; returns it alone or first in a tuple, as older models do."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.seen: Tensor | None = None

    def forward(self, stream: Tensor) -> Any:
        self.seen = stream
        return (2 * stream, "weights") if self.as_tuple else 2 * stream


def run(blocks: nn.ModuleList, stream: Tensor) -> Tensor:
    for block in blocks:
        output = block(stream)
        stream = output[0] if isinstance(output, tuple) else output
    return stream


@pytest.fixture(params=[False, True], ids=["tensor", "tuple"])
def blocks(request: pytest.FixtureRequest) -> nn.ModuleList:
    return nn.ModuleList(Doubling(request.param) for _ in range(4))


def test_capture_holds_the_outputs_of_the_layers_asked_for(blocks: nn.ModuleList) -> None:
    with capture(blocks, [1, 3]) as states:
        run(blocks, torch.ones(1, 2, 5))
    assert {layer: float(state.mean()) for layer, state in states.items()} == {1: 2.0, 3: 8.0}


def test_capture_leaves_no_hook_behind(blocks: nn.ModuleList) -> None:
    with pytest.raises(ZeroDivisionError), capture(blocks, [1]), edit(blocks, {2: lambda s: s}):
        _ = 1 / 0
    assert not any(block._forward_hooks for block in blocks)


def test_capture_with_stop_runs_no_block_above_the_highest_layer(blocks: nn.ModuleList) -> None:
    with capture(blocks, [2, 1], stop=True) as states, pytest.raises(Reached):
        run(blocks, torch.ones(1, 2, 5))
    assert sorted(states) == [1, 2]
    assert blocks[2].seen is None


def test_edit_changes_what_the_next_block_gets(blocks: nn.ModuleList) -> None:
    with edit(blocks, {2: lambda stream: stream + 1}):
        result = run(blocks, torch.ones(1, 2, 5))
    assert float(blocks[2].seen.mean()) == 5.0
    assert float(result.mean()) == 20.0


def test_edit_keeps_the_rest_of_a_tuple() -> None:
    block = Doubling(as_tuple=True)
    with edit(nn.ModuleList([block]), {1: lambda stream: -stream}):
        stream, rest = block(torch.ones(1, 1, 5))
    assert rest == "weights"
    assert float(stream.mean()) == -2.0


def test_edits_at_several_layers_act_one_after_another(blocks: nn.ModuleList) -> None:
    with edit(blocks, {3: lambda stream: stream - 3, 1: lambda stream: stream + 1}):
        # ((1 * 2 + 1) * 2) * 2 - 3 = 9, doubled once more
        assert float(run(blocks, torch.ones(1, 2, 5)).mean()) == 18.0


@pytest.mark.parametrize("capture_outside", [False, True])
def test_capture_sees_what_edit_changed_in_either_nesting(
    blocks: nn.ModuleList, capture_outside: bool
) -> None:
    reading, changing = capture(blocks, [2]), edit(blocks, {2: lambda stream: stream + 1})
    if capture_outside:
        with reading as states, changing:
            run(blocks, torch.ones(1, 2, 5))
    else:
        with changing, reading as states:
            run(blocks, torch.ones(1, 2, 5))
    assert float(states[2].mean()) == 5.0


def test_edit_and_capture_meet_at_a_real_models_block_output(chat: ChatModel) -> None:
    rows = encode(chat)
    plain = forward(chat, rows, layers=[2, 3])
    shift = torch.linspace(-3, 3, 32)
    with edit(chat.blocks, {2: lambda stream: stream + shift}):
        changed = forward(chat, rows, layers=[2, 3])
    # The prefix runs under the edit too, but only once; later positions see it through attention.
    torch.testing.assert_close(
        changed.states[2] - plain.states[2], shift.expand_as(plain.states[2])
    )
    assert not torch.allclose(changed.states[3], plain.states[3], atol=0.1)
