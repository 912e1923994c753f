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
def affirmation_loss(
    chat: ChatModel, prompts: Sequence[str], edits: Mapping[int, Edit] | None = None
) -> float:
    """The mean loss of an affirmation after prompts, under edits of all their own tokens.

    Attacks choose their settings by it on validation prompts: it falls when the model is about to
    comply, and rises when it is about to refuse or to babble.
    """
    template = chat.template
    total = 0.0
    for start in range(0, len(prompts), chat.batch_size):
        batch = prompts[start : start + chat.batch_size]
        heads = [template.encode(prompt) for prompt in batch]
        targets = [
            template.encode(prompt, AFFIRMATION)[len(head) :]
            for prompt, head in zip(batch, heads, strict=True)
        ]
        total += float(target_losses(chat, heads, targets, edits, keep=template.head).sum())
    return total / len(prompts)
