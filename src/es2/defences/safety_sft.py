"""Safety tuning by supervised fine-tuning (STL): refuse harmful prompts, answer harmless ones.

Source: Bianchi et al., "Safety-Tuned LLaMAs" (arXiv 2309.07875). There, answers to harmless prompts
are copied; here the model is held to itself on them by KL, so that nothing but refusal is taught: a
model is not sure of the first word of most answers, and copying one of many makes for much noise.
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
from es2.models.generation import in_batches
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


@torch.no_grad()
def refusal_margins(
    chat: ChatModel, prompts: Sequence[str], progress: Callable[[int], None] = lambda done: None
) -> Float[Tensor, "n"]:
    """How sure the model is to refuse each prompt, see `margin`; on the CPU."""
    rows = [chat.template.encode(prompt) for prompt in prompts]
    found = in_batches(chat, rows, lambda batch: list(margin(chat, batch).cpu()), progress)
    return torch.stack(found)


def margin(chat: ChatModel, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n"]:
    """By how many nats the refusal's first token is likelier than any other, after each prompt.

    Above zero a greedy model starts to refuse.
    """
    out = forward(chat, rows)
    assert out.final is not None
    last = out.at(out.final, range(len(rows)), [len(row) - 1 for row in rows])
    chances = logits(chat.model, last).float().log_softmax(-1)
    start = chat.template.encode("", REFUSAL)[len(chat.template.encode(""))]
    others = torch.arange(chances.shape[-1], device=chances.device) != start
    return chances[:, start] - chances[:, others].amax(-1)


@dataclass(frozen=True)
class Lean:
    """Moves the point at which a safety-tuned model changes from answering to refusing.

    Once a model tells its training prompts apart without doubt, weighing harmless ones more no
    longer moves that point (Byrd and Lipton, arXiv 1812.03372). This moves it alone: the squared
    difference of every prompt's margin from what it was, less a constant.

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

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Never before the step limit."""
        return None


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
