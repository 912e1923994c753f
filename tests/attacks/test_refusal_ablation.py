"""Taking a direction out of weights: no block writes along it, or it is said that this is not known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from es2.attacks.refusal_ablation import ablated_weights
from es2.errors import Es2Error
from es2.models.loading import ChatModel

Tiny = Callable[[str], ChatModel]


def stream(chat: ChatModel) -> torch.Tensor:
    """The residual stream after the embeddings and every block but the last, whose norm follows."""
    ids = torch.tensor([chat.template.encode("Name a boat")])
    with torch.no_grad():
        return torch.stack(chat.model(ids, output_hidden_states=True).hidden_states[:-1])


def test_no_block_writes_along_the_direction(tiny: Tiny) -> None:
    chat = tiny("llama")
    before = stream(chat)
    way = torch.nn.functional.normalize(torch.randn(before.shape[-1]), dim=0)
    along = (before.diff(dim=0) @ way).abs()
    assert along.max() > 1e-3
    with ablated_weights(chat, way):
        assert (stream(chat).diff(dim=0) @ way).abs().max() < 1e-5 < along.max()
    assert torch.equal(stream(chat), before)


def test_experts_that_are_one_tensor_are_not_passed_over(tiny: Tiny) -> None:
    chat = tiny("llama")
    chat.blocks[1].experts = nn.Parameter(torch.zeros(2, 3, 4))
    way = torch.zeros(chat.model.config.hidden_size)
    with pytest.raises(Es2Error, match="use where=activations"), ablated_weights(chat, way):
        pass
