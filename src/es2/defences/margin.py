"""The refusal margin: by how many nats a response would sooner start as a refusal than otherwise."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.reference import Reference


def refusal_margin(scores: Float[Tensor, "n vocab"], start: int) -> Float[Tensor, "n"]:
    """How much likelier the refusal's first token is than the likeliest other, in nats.

    Above zero a greedy model starts to refuse.

    Args:
        scores: logits after the prompt.
        start: the refusal's first token.
    """
    others = torch.arange(scores.shape[-1], device=scores.device) != start
    return scores[:, start] - scores[:, others].amax(-1)


def refusal_start(refusals: Reference) -> int | None:
    """The token with which most of the recorded refusals start; None if no response is recorded."""
    starts = Counter(
        row[first + 1]
        for row, first in zip(refusals.rows, refusals.firsts, strict=True)
        if len(row) > first + 1
    )
    return starts.most_common(1)[0][0] if starts else None
