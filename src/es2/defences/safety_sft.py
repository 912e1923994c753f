"""Safety tuning by supervised fine-tuning (STL): refuse harmful prompts, answer harmless ones.

Source: Bianchi et al., "Safety-Tuned LLaMAs" (arXiv 2309.07875). There, answers to harmless prompts
are copied; here the model is held to itself on them by KL, at every token that it might have said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.reference import Reference, kl_from, record
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.loading import ChatModel

REFUSAL = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class SafetySft:
    """Cross-entropy of a refusal on harmful rows, and KL from the model as it was on harmless ones.

    Attributes:
        harmful: token rows, harmful prompt then refusal; with the index where the refusal starts.
        harmless: what the model does on harmless prompts.
        settings: `batch_size` harmful rows a step.
        ratio: harmless rows for each harmful one.
        keep: weight of the KL.
        first: weight of the first response token, which decides between refusal and answer, against
            1 for every other.
    """

    harmful: Sequence[tuple[list[int], int]]
    harmless: Reference
    settings: TrainSettings
    ratio: int = 1
    keep: float = 1.0
    first: float = 1.0

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Weighed mean cross-entropy over the refusals' tokens, plus the KL on harmless rows."""
        size, seed = self.settings.batch_size, self.settings.seed
        bad = [self.harmful[i] for i in batch_indices(len(self.harmful), size, step, seed)]
        good = batch_indices(len(self.harmless), self.ratio * size, step, seed + 1)
        rows = [row for row, _ in bad] + [self.harmless.rows[i] for i in good]
        starts = [start - 1 for _, start in bad] + [self.harmless.starts[i] for i in good]
        out = forward(chat, rows, keep=min(starts))
        assert out.final is not None
        places = [(i, p) for i, (row, start) in enumerate(bad) for p in range(start, len(row))]
        hidden = out.at(out.final, [i for i, _ in places], [p - 1 for _, p in places])
        targets = torch.tensor([rows[i][p] for i, p in places], device=hidden.device)
        each = torch.nn.functional.cross_entropy(
            logits(chat.model, hidden), targets, reduction="none"
        )
        opening = torch.tensor([p == bad[i][1] for i, p in places], device=hidden.device)
        weights = torch.where(opening, self.first, 1.0)
        refusal = (weights * each).sum() / weights.sum()
        kept = kl_from(self.harmless, good, chat, out, len(bad), self.first)
        metrics = {
            "cross_entropy": float(refusal.detach()),
            "first": float(each.detach()[opening].mean()),
            "kl": float(kept.detach()),
        }
        return refusal + self.keep * kept, metrics

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Never before the step limit."""
        return None


def prepare(
    chat: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    settings: TrainSettings,
    answer_tokens: int = 48,
    ratio: int = 1,
    keep: float = 1.0,
    first: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> SafetySft:
    """Token rows to train on: refusals for harmful prompts, the model's own answers for others.

    Args:
        chat: the model as it is.
        harmful: prompts to refuse.
        harmless: prompts to answer as before.
        settings: of the training loop.
        answer_tokens: along how much of its own answer the model is held to itself.
        ratio: harmless rows for each harmful one.
        keep: weight of the KL.
        first: weight of the first response token.
        progress: called with the number of harmless prompts answered.
    """
    template, stop = chat.template, min(chat.stop_ids)
    refused = [
        ([*template.encode(prompt, REFUSAL), stop], len(template.encode(prompt)))
        for prompt in harmful
    ]
    answered = record(chat, harmless, answer_tokens, progress=progress)
    return SafetySft(refused, answered, settings, ratio, keep, first)
