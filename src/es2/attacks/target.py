"""How likely a model is to start its response with a target: what many attacks maximise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from es2.models.activations import Edit
from es2.models.blocks import logits
from es2.models.forward import Held, Starts, forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel

Loss = Literal["cross_entropy", "mellowmax"]

AFFIRMATION = "Sure, here is"
"""The target where a prompt brings none of its own."""

OPENINGS = ("Sure", AFFIRMATION, "Of course! Here's", "Certainly")
"""Affirmative starts of different lengths."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of targets after prompts.

    Attributes:
        losses: of each target's tokens, in nats.
        said: whether the target is how the greedy response starts.
    """

    losses: Float[Tensor, "n"]
    said: Bool[Tensor, "n"]


def read_targets(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    edits: Mapping[int, Edit] | None = None,
    keep: int | None = None,
    loss: Loss = "cross_entropy",
    held: Held | None = None,
    starts: Starts | None = None,
) -> Reading:
    """One pass over templated prompts with their targets behind them.

    Args:
        chat: the model.
        heads: token ids of the templated prompts.
        targets: token ids of the targets; none is empty.
        edits: changes to the residual stream, by layer; rows are padded at the end.
        keep: share at most this many tokens among the rows, so that edits see those from there on.
        loss: the mean cross-entropy over a target's tokens, or their mellowmax (at alpha 1), a mean
            that leans towards the worst (Asadi and Littman, arXiv 1612.05628).
        held: prefixes of earlier passes.
        starts: what each prompt starts with, in place of what all share.
    """
    # Nothing is read where a target's last token stands, so no row holds it.
    rows = [[*head, *target[:-1]] for head, target in zip(heads, targets, strict=True)]
    first = min(map(len, heads)) - 1
    keep = first if keep is None else min(keep, first)
    out = forward(chat, rows, keep=keep, edits=edits, held=held, starts=starts)
    assert out.final is not None
    places = [
        (index, position)
        for index, (head, row) in enumerate(zip(heads, rows, strict=True))
        for position in range(len(head) - 1, len(row))
    ]
    index, position = zip(*places, strict=True)
    scores = logits(chat.model, out.at(out.final, index, position))
    wanted = torch.tensor([token for target in targets for token in target], device=scores.device)
    lengths = [len(target) for target in targets]
    parts = torch.nn.functional.cross_entropy(scores, wanted, reduction="none").split(lengths)
    if loss == "mellowmax":
        losses = torch.stack([part.logsumexp(0) - math.log(len(part)) for part in parts])
    else:
        losses = torch.stack([part.mean() for part in parts])
    likeliest = (scores.argmax(-1) == wanted).split(lengths)
    return Reading(losses, torch.stack([part.all() for part in likeliest]))


@torch.no_grad()
def read_target(
    chat: ChatModel,
    heads: Sequence[Sequence[int]],
    target: Sequence[int],
    edits: Mapping[int, Edit] | None = None,
    keep: int | None = None,
    loss: Loss = "cross_entropy",
    held: Held | None = None,
    size: int | None = None,
) -> Reading:
    """One target after each of any number of prompts, in batches, of at most `size` rows if given."""

    def run(batch: list[int]) -> list[tuple[Tensor, Tensor]]:
        own = [heads[place] for place in batch]
        found = read_targets(chat, own, [target] * len(batch), edits, keep, loss, held)
        return list(zip(found.losses.cpu(), found.said.cpu(), strict=True))

    losses, said = zip(*in_batches(chat, heads, run, size=size), strict=True)
    return Reading(torch.stack(losses), torch.stack(said))


def affirmation_loss(
    chat: ChatModel, heads: Sequence[Sequence[int]], edits: Mapping[int, Edit] | None = None
) -> float:
    """The mean loss of an affirmation after templated prompts, under edits of all their own tokens.

    Attacks choose their settings by it on validation prompts: it falls when the model is about to
    comply, and rises when it is about to refuse or to babble.
    """
    target = chat.template.encode_response(AFFIRMATION)
    return float(read_target(chat, heads, target, edits, keep=chat.template.head).losses.mean())
