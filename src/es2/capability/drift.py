"""Drift: how far a defended model has moved from its base on harmless prompts.

Measured where it can differ: over the prompts' own tokens, and along the base's own answers to them,
at the first response token (which decides between refusal and answer), at the first eight, and at all.
The base's final hidden states are recorded once, so that the base is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.reference import Reference, kl_divergence
from es2.errors import Es2Error
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel

OPENING = 8
"""Response tokens that make up an answer's opening."""


@dataclass(frozen=True)
class Span:
    """How two models compare over some positions of all prompts, each position weighed alike.

    Attributes:
        kl: mean KL(base || defended) of the next token, in nats.
        agreement: share of positions where both models' likeliest next token is the same.
        perplexity_ratio: defended over base, on the tokens that follow.
        positions: how many.
    """

    kl: float
    agreement: float
    perplexity_ratio: float
    positions: int


@dataclass(frozen=True)
class Drift:
    """The spans, from the prompt to the end of the base's answers.

    Attributes:
        prompt: the prompts' own tokens, but for a start that all prompts share; None if the reference
            does not hold them.
        first: the position that predicts the first response token.
        opening: those that predict the first eight.
        response: those that predict all of the response.
    """

    prompt: Span | None
    first: Span
    opening: Span
    response: Span

    @property
    def kl(self) -> float:
        """Mean KL(base || defended) along the base's answers, in nats."""
        return self.response.kl

    @property
    def kl_first(self) -> float:
        """The same at the position that predicts the first response token."""
        return self.first.kl

    @property
    def perplexity_ratio(self) -> float:
        """Defended over base, on the base's answers."""
        return self.response.perplexity_ratio

    @property
    def agreement(self) -> float:
        """Share of response positions where both models' likeliest next token is the same."""
        return self.response.agreement


@torch.no_grad()
def drift(base: ChatModel, defended: ChatModel, reference: Reference) -> Drift:
    """Compares two models along a reference recorded on the base.

    Args:
        base: the undefended model.
        defended: the same model after a defence.
        reference: the base's answers to harmless prompts; `record` with `whole_prompt` for the span
            of the prompt.

    Raises:
        Es2Error: if all of the base's answers are empty.
    """

    def run(batch: list[int]) -> list[Float[Tensor, "4 _"]]:
        keep = min(reference.starts[i] for i in batch)
        out = forward(defended, [reference.rows[i] for i in batch], keep=keep)
        assert out.final is not None
        results = []
        for place, i in enumerate(batch):
            row, start = reference.rows[i], reference.starts[i]
            # The last position predicts a token that the row does not hold.
            span = range(start, len(row) - 1)
            hidden = reference.hidden[i][: len(span)]
            before = logits(base.model, hidden).log_softmax(-1)
            after = logits(defended.model, out.at(out.final, [place] * len(span), span))
            after = after.log_softmax(-1)
            token = torch.tensor(row[start + 1 :], dtype=torch.long, device=before.device)[:, None]
            results.append(
                torch.stack(
                    [
                        kl_divergence(before, after),
                        (before.argmax(-1) == after.argmax(-1)).float(),
                        -before.gather(-1, token)[:, 0],
                        -after.gather(-1, token)[:, 0],
                    ]
                ).cpu()
            )
        return results

    rows = in_batches(defended, reference.rows, run)
    # Where the response begins in each row's positions, which count from the reference's start.
    firsts = [
        first - start for first, start in zip(reference.firsts, reference.starts, strict=True)
    ]
    tail = base.template.tail
    placed = list(zip(rows, firsts, strict=True))
    response = _span([row[:, first:] for row, first in placed])
    if response is None:
        raise Es2Error(f"{base.name} answers all prompts with nothing: drift cannot be measured")
    first_span = _span([row[:, first : first + 1] for row, first in placed])
    opening = _span([row[:, first : first + OPENING] for row, first in placed])
    assert first_span is not None and opening is not None
    return Drift(
        prompt=_span([row[:, : max(0, first + 1 - tail)] for row, first in placed if first]),
        first=first_span,
        opening=opening,
        response=response,
    )


def _span(parts: Sequence[Float[Tensor, "4 _"]]) -> Span | None:
    """The mean over all positions of all parts; None if there are none."""
    values = torch.cat(list(parts), dim=1).double() if parts else torch.zeros(4, 0)
    if not values.shape[1]:
        return None
    kl, agreement, before, after = values.mean(1).tolist()
    return Span(kl, agreement, math.exp(after - before), values.shape[1])
