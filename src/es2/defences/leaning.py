"""Leaning: moves the point at which a safety-tuned model changes from answering to refusing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.margin import refusal_margin
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel


@torch.no_grad()
def refusal_margins(
    chat: ChatModel, prompts: Sequence[str], progress: Callable[[int], None] = lambda done: None
) -> Float[Tensor, "n"]:
    """How sure the model is to refuse each prompt with es2's own refusal; on the CPU."""
    rows = [chat.template.encode(prompt) for prompt in prompts]

    def run(batch: list[int]) -> list[Tensor]:
        return list(margin(chat, [rows[place] for place in batch]).cpu())

    return torch.stack(in_batches(chat, rows, run, progress))


def margin(chat: ChatModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n"]:
    """The refusal margin after each templated prompt."""
    out = forward(chat, rows)
    assert out.final is not None
    last = out.at(out.final, range(len(rows)), [len(row) - 1 for row in rows])
    start = chat.template.encode("", REFUSAL)[len(chat.template.encode(""))]
    return refusal_margin(logits(chat.model, last), start)


@dataclass(frozen=True)
class Lean:
    """Moves the point at which a safety-tuned model changes from answering to refusing.

    The loss is the squared difference of every prompt's margin from what it was, less a constant.
    Weighing harmless prompts more in training moves that point too, but the less, the surer the model
    is of its training prompts (Byrd and Lipton, arXiv 1812.03372).

    Attributes:
        harmful: token rows of templated prompts.
        harmless: the same.
        margins: of the harmful rows, then of the harmless ones, before.
        by: nats by which all margins are to change; below zero the model refuses less.
        settings: `batch_size` rows of each class a step.
    """

    harmful: Sequence[list[int]]
    harmless: Sequence[list[int]]
    margins: Float[Tensor, "n"]
    by: float
    settings: TrainSettings

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean squared difference, in nats squared."""
        size, seed, split = self.settings.batch_size, self.settings.seed, len(self.harmful)
        bad = batch_indices(split, size, step, seed)
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        now = margin(chat, [self.harmful[i] for i in bad] + [self.harmless[i] for i in good])
        before = self.margins[bad + [split + i for i in good]].to(now.device)
        return (now - before - self.by).square().mean(), {
            "moved": float((now.detach() - before).mean())
        }


def lean(
    chat: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    by: float,
    settings: TrainSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> Lean:
    """The objective for a model as it is now.

    Args:
        chat: the safety-tuned model.
        harmful: prompts.
        harmless: prompts.
        by: nats by which all margins are to change.
        settings: of the training loop.
        progress: called with the number of prompts read.
    """
    margins = refusal_margins(chat, [*harmful, *harmless], progress)
    rows = [[chat.template.encode(prompt) for prompt in group] for group in (harmful, harmless)]
    return Lean(rows[0], rows[1], margins, by, settings)
