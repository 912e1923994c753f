"""What an attack spends: time, steps, tokens through the model, arithmetic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from es2.models.loading import ChatModel


@dataclass
class Budget:
    """What was spent; of a batch, each prompt's attempt is given an even share.

    Attributes:
        seconds: wall time.
        steps: of an optimisation; 0 for attacks without one.
        forward_tokens: tokens that the blocks read, padding included.
        backward_tokens: those through which a gradient was taken.
        flops: estimated arithmetic: 2 operations a weight of the blocks and token forward, and 2
            more backward, where the weights themselves need no gradient.
    """

    seconds: float = 0.0
    steps: int = 0
    forward_tokens: float = 0
    backward_tokens: float = 0
    flops: float = 0.0

    def __add__(self, other: Budget) -> Budget:
        return Budget(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def among(self, prompts: int) -> Budget:
        """One prompt's share; every prompt sees all steps."""
        shared = (self.seconds, self.forward_tokens, self.backward_tokens, self.flops)
        seconds, forward, backward, flops = (value / prompts for value in shared)
        return Budget(seconds, self.steps, forward, backward, flops)


@contextmanager
def metered(chat: ChatModel) -> Iterator[Budget]:
    """Within the context, the yielded budget counts what the model reads; complete at its end."""
    spent, started = Budget(), time.perf_counter()
    weights = sum(parameter.numel() for parameter in chat.blocks.parameters())

    def count(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        read = given.get("input_ids")
        read = given["inputs_embeds"] if read is None else read
        tokens = read.shape[0] * read.shape[1]
        spent.forward_tokens += tokens
        if torch.is_grad_enabled():
            spent.backward_tokens += tokens

    handle = chat.decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield spent
    finally:
        handle.remove()
        spent.seconds = time.perf_counter() - started
        spent.flops = 2.0 * weights * (spent.forward_tokens + spent.backward_tokens)
