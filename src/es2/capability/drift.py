"""Drift: how far a defended model has moved from its base on harmless prompts.

Measured along the base's own answers to held-out harmless prompts: KL from base to defended at every
response position, and the ratio of the perplexities that the two give those answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.reference import Reference, kl_divergence
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel


@dataclass(frozen=True)
class Drift:
    """In nats, and as a ratio.

    Attributes:
        kl: mean KL(base || defended) over all response positions of all prompts.
        kl_first: the same at the position that predicts the first response token.
        perplexity_ratio: defended over base, on the base's answers.
        agreement: share of positions where both models' likeliest next token is the same.
    """

    kl: float
    kl_first: float
    perplexity_ratio: float
    agreement: float


@torch.no_grad()
def drift(base: ChatModel, defended: ChatModel, reference: Reference) -> Drift:
    """Compares two models along a reference recorded on the base.

    Args:
        base: the undefended model.
        defended: the same model after a defence.
        reference: the base's answers to harmless prompts.
    """
    index = {id(row): i for i, row in enumerate(reference.rows)}

    def run(batch: list[list[int]]) -> list[Float[Tensor, "4 _"]]:
        firsts = [reference.firsts[index[id(row)]] for row in batch]
        out = forward(defended, batch, keep=min(firsts))
        assert out.final is not None
        results = []
        for place, (row, first) in enumerate(zip(batch, firsts, strict=True)):
            # The last position predicts a token that the row does not hold.
            span = range(first, len(row) - 1)
            hidden = reference.hidden[index[id(row)]][: len(span)]
            before = logits(base.model, hidden).log_softmax(-1)
            after = logits(defended.model, out.at(out.final, [place] * len(span), span))
            after = after.log_softmax(-1)
            token = torch.tensor(row[first + 1 :], device=before.device)[:, None]
            results.append(
                torch.stack(
                    [
                        kl_divergence(before, after),
                        -before.gather(-1, token)[:, 0],
                        -after.gather(-1, token)[:, 0],
                        (before.argmax(-1) == after.argmax(-1)).float(),
                    ]
                ).cpu()
            )
        return results

    rows = in_batches(defended, reference.rows, run)
    every = torch.cat(rows, dim=1).double().mean(1)
    first = torch.stack([row[0, 0] for row in rows if row.shape[1]])
    return Drift(
        kl=float(every[0]),
        kl_first=float(first.mean()),
        perplexity_ratio=math.exp(float(every[2] - every[1])),
        agreement=float(every[3]),
    )
