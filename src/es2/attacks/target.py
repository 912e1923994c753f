"""How likely a model is to start its response with a target: what many attacks maximise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from es2.models.activations import Edit
from es2.models.blocks import logits
from es2.models.forward import forward
from es2.models.generation import generate, in_batches
from es2.models.loading import ChatModel

Loss = Literal["cross_entropy", "mellowmax"]

AFFIRMATION = "Sure, here is"
"""The target where a prompt brings none of its own."""


def target_losses(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    edits: Mapping[int, Edit] | None = None,
    keep: int | None = None,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n"]:
    """The loss of each target's tokens after its templated prompt, in nats.

    Args:
        chat: the model.
        heads: token ids of the templated prompts.
        targets: token ids of the targets; none is empty.
        edits: changes to the residual stream, by layer; rows are padded at the end.
        keep: share at most this many tokens among the rows, so that edits see those from there on.
        loss: the mean cross-entropy over a target's tokens, or their mellowmax (at alpha 1), a mean
            that leans towards the worst (Asadi and Littman, arXiv 1612.05628).
    """
    rows = [[*head, *target] for head, target in zip(heads, targets, strict=True)]
    first = min(map(len, heads)) - 1
    out = forward(chat, rows, keep=first if keep is None else min(keep, first), edits=edits)
    assert out.final is not None
    places = [
        (index, position)
        for index, (head, row) in enumerate(zip(heads, rows, strict=True))
        for position in range(len(head) - 1, len(row) - 1)
    ]
    index, position = zip(*places, strict=True)
    scores = logits(chat.model, out.at(out.final, index, position))
    wanted = torch.tensor([token for target in targets for token in target], device=scores.device)
    losses = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
    parts = losses.split([len(target) for target in targets])
    if loss == "mellowmax":
        return torch.stack([part.logsumexp(0) - math.log(len(part)) for part in parts])
    return torch.stack([part.mean() for part in parts])


@torch.no_grad()
def losses_of(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    target: Sequence[int],
    edits: Mapping[int, Edit] | None = None,
    keep: int | None = None,
    loss: Loss = "cross_entropy",
) -> Float[Tensor, "n"]:
    """One target's loss after each of any number of prompts, in batches; see `target_losses`."""

    def run(batch: list[Sequence[int]]) -> list[Tensor]:
        return list(target_losses(chat, batch, [target] * len(batch), edits, keep, loss).cpu())

    return torch.stack(in_batches(chat, heads, run))


def affirmation_loss(
    chat: ChatModel, prompts: Sequence[str], edits: Mapping[int, Edit] | None = None
) -> float:
    """The mean loss of an affirmation after prompts, under edits of all their own tokens.

    Attacks choose their settings by it on validation prompts: it falls when the model is about to
    comply, and rises when it is about to refuse or to babble.
    """
    heads = [chat.template.encode(prompt) for prompt in prompts]
    target = chat.template.encode_response(AFFIRMATION)
    return float(losses_of(chat, heads, target, edits, keep=chat.template.head).mean())


def all_said(
    chat: ChatModel, heads: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> bool:
    """Whether every prompt's greedy response starts with its target."""
    answers = generate(chat, heads, max(map(len, targets)))
    return all(
        answer[: len(target)] == list(target)
        for answer, target in zip(answers, targets, strict=True)
    )
