"""What the base model does on the training prompts, recorded once and compared with ever after.

The base's next-token distribution is kept as its *final hidden states*: d numbers a token instead of
one a vocabulary entry. The output embedding gives the exact logits back, so no second model is
needed, whether LoRA or all weights are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.models.blocks import logits
from es2.models.forward import Forward, forward, shared_prefix
from es2.models.generation import generate, generate_and_read, in_batches
from es2.models.loading import ChatModel


@dataclass(frozen=True)
class Reference:
    """Rows of tokens and the base model's final hidden states at the positions of interest.

    Attributes:
        rows: token ids, templated prompt then the start of a response.
        starts: the first position of interest in each row.
        firsts: the last prompt position in each row: it predicts the first response token.
        hidden: the base's final hidden states from `starts` to the end of each row.
    """

    rows: list[list[int]]
    starts: list[int]
    firsts: list[int]
    hidden: list[Float[Tensor, "_ d"]]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Sequence[int]) -> Reference:
        """Some of the rows, in the order given."""
        return Reference(
            [self.rows[i] for i in indices],
            [self.starts[i] for i in indices],
            [self.firsts[i] for i in indices],
            [self.hidden[i] for i in indices],
        )

    def prompts(self, indices: Iterable[int]) -> list[list[int]]:
        """The templated prompts of some of the rows, without responses."""
        return [self.rows[i][: self.firsts[i] + 1] for i in indices]

    def cut(self, response_tokens: int) -> Reference:
        """The same with at most so many tokens of each response."""
        ends = [first + 1 + response_tokens for first in self.firsts]
        return Reference(
            [row[:end] for row, end in zip(self.rows, ends, strict=True)],
            self.starts,
            self.firsts,
            [
                hidden[: end - start]
                for hidden, end, start in zip(self.hidden, ends, self.starts, strict=True)
            ],
        )


@torch.no_grad()
def record(
    chat: ChatModel,
    prompts: Sequence[str],
    response_tokens: int,
    whole_prompt: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Reference:
    """The base model's own responses to prompts, and its hidden states along them.

    Args:
        chat: the base model.
        prompts: texts, to be templated.
        response_tokens: how much of the base's greedy response to keep; 0 for the prompt alone.
        whole_prompt: positions of interest are all of the prompt's that are not the same for every
            row, not the last alone.
        progress: called with the number of prompts done.
    """
    heads = [chat.template.encode(prompt) for prompt in prompts]
    firsts = [len(head) - 1 for head in heads]
    if not whole_prompt:
        answered = generate_and_read(chat, heads, response_tokens, progress)
        rows = [head + tail for head, (tail, _) in zip(heads, answered, strict=True)]
        return Reference(rows, firsts, firsts, [hidden for _, hidden in answered])
    tails = generate(chat, heads, response_tokens, progress=progress)
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    # Rows that share their whole prompt have at least its last position.
    return record_rows(chat, rows, [min(shared_prefix(rows), *firsts)] * len(rows), firsts)


@torch.no_grad()
def record_rows(
    chat: ChatModel,
    rows: list[list[int]],
    starts: list[int],
    firsts: list[int],
    progress: Callable[[int], None] = lambda done: None,
) -> Reference:
    """The base model's hidden states along given rows; for the arguments see `Reference`."""

    def run(batch: list[int]) -> list[Tensor]:
        out = forward(chat, [rows[i] for i in batch], keep=min(starts[i] for i in batch))
        assert out.final is not None
        spans = [range(starts[i], len(rows[i])) for i in batch]
        return [out.at(out.final, [at] * len(span), span) for at, span in enumerate(spans)]

    return Reference(rows, starts, firsts, in_batches(chat, rows, run, progress))


def kl_divergence(
    base: Float[Tensor, "n vocab"], tuned: Float[Tensor, "n vocab"]
) -> Float[Tensor, "n"]:
    """D_KL(P_base || P_tuned) in nats at each position, from logits."""
    base, tuned = base.log_softmax(-1), tuned.log_softmax(-1)
    return (base.exp() * (base - tuned)).sum(-1)


def kl_from(
    reference: Reference,
    picked: Sequence[int],
    chat: ChatModel,
    out: Forward,
    shift: int,
    first: float,
) -> Float[Tensor, ""]:
    """KL from the base to the model in training: the mean over rows of each row's weighed mean.

    Args:
        reference: what the base does.
        picked: which of its rows are in the batch, one after the other.
        chat: the model in training.
        out: its pass over the batch.
        shift: the place of the first of these rows in the batch.
        first: weight of the position that predicts the first response token, against 1 for every
            other.
    """
    assert out.final is not None
    rows: list[int] = []
    positions: list[int] = []
    weights: list[float] = []
    for place, index in enumerate(picked):
        span = range(reference.starts[index], len(reference.rows[index]))
        raw = [first if p == reference.firsts[index] else 1.0 for p in span]
        rows += [shift + place] * len(span)
        positions += span
        weights += [w / sum(raw) / len(picked) for w in raw]
    base = torch.cat([reference.hidden[index] for index in picked])
    tuned = logits(chat.model, out.at(out.final, rows, positions))
    divergence = kl_divergence(logits(chat.model, base), tuned)
    return (divergence * torch.tensor(weights, device=divergence.device)).sum()
