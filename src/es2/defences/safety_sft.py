"""Safety tuning by supervised fine-tuning (STL): refuse harmful prompts, answer harmless ones.

Source: Bianchi et al., "Safety-Tuned LLaMAs" (arXiv 2309.07875). Here the answers to harmless
prompts are the model's own, so that nothing but refusal is taught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.generation import generate
from es2.models.loading import ChatModel

REFUSAL = "I'm sorry, but I can't help with that."


@dataclass(frozen=True)
class SafetySft:
    """Cross-entropy on the response tokens of a mix of harmful and harmless rows.

    Attributes:
        harmful: token rows, harmful prompt then refusal; with the index where the response starts.
        harmless: token rows, harmless prompt then answer; the same.
        settings: `batch_size` harmful rows a step.
        ratio: harmless rows for each harmful one. A greedy model refuses where a refusal is the
            likelier start, judged by the mix it was trained on; the more harmless rows, the fewer
            refusals.
        first: weight of the first response token, which decides between refusal and answer, against
            1 for every other.
    """

    harmful: Sequence[tuple[list[int], int]]
    harmless: Sequence[tuple[list[int], int]]
    settings: TrainSettings
    ratio: int = 1
    first: float = 1.0

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Weighed mean cross-entropy over the batch's response tokens."""
        size, seed = self.settings.batch_size, self.settings.seed
        picked = [
            group[i]
            for group, count in ((self.harmful, size), (self.harmless, self.ratio * size))
            for i in batch_indices(len(group), count, step, seed)
        ]
        rows = [row for row, _ in picked]
        out = forward(chat, rows, keep=min(start for _, start in picked) - 1)
        assert out.final is not None
        places = [(i, p) for i, (row, start) in enumerate(picked) for p in range(start, len(row))]
        at = [i for i, _ in places]
        hidden = out.at(out.final, at, [p - 1 for _, p in places])
        targets = torch.tensor([rows[i][p] for i, p in places], device=hidden.device)
        each = torch.nn.functional.cross_entropy(
            logits(chat.model, hidden), targets, reduction="none"
        )
        opening = torch.tensor([p == picked[i][1] for i, p in places], device=hidden.device)
        weights = torch.where(opening, self.first, 1.0)
        loss = (weights * each).sum() / weights.sum()
        metrics = {
            "cross_entropy": float(loss.detach()),
            "first": float(each.detach()[opening].mean()),
        }
        return loss, metrics

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
    first: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> SafetySft:
    """Token rows to train on: refusals for harmful prompts, the model's own answers for others.

    Args:
        chat: the model as it is.
        harmful: prompts to refuse.
        harmless: prompts to answer as before.
        settings: of the training loop.
        answer_tokens: how much of the model's answer to keep.
        ratio: harmless rows for each harmful one.
        first: weight of the first response token.
        progress: called with the number of harmless prompts answered.
    """
    template = chat.template
    stop = min(chat.stop_ids)
    heads = [template.encode(prompt) for prompt in harmless]
    answers = generate(chat, heads, answer_tokens, progress=progress)
    # An answer cut at the limit must not teach the model to stop there.
    ends = [[] if len(answer) == answer_tokens else [stop] for answer in answers]
    refused = [
        ([*template.encode(prompt, REFUSAL), stop], len(template.encode(prompt)))
        for prompt in harmful
    ]
    answered = [
        (head + answer + end, len(head))
        for head, answer, end in zip(heads, answers, ends, strict=True)
    ]
    return SafetySft(refused, answered, settings, ratio, first)
