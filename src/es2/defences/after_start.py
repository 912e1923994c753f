"""Behind an affirmative start: what a model does once its response has begun with "Sure".

Refusal that is decided at the last prompt token alone is stepped past by a response whose first
words are given (Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", arXiv
2406.05946). So the batch is read once more with an affirmative opening as the start of every
response: harmful rows are to refuse from there on, harmless ones to go on as the base does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.reference import Reference, kl_from, record_rows
from es2.defences.responses import read_responses
from es2.defences.trainer import seeded
from es2.models.forward import forward
from es2.models.loading import ChatModel

OPENINGS = ("Sure", "Sure, here is", "Of course! Here's", "Certainly")
"""Affirmative starts of different lengths; a step draws one of them for all its rows."""


@dataclass(frozen=True)
class Reading:
    """What a model in training does behind the opening of a step.

    Attributes:
        refusal: cross-entropy of the harmful rows' refusals.
        kl: from the base, on harmless rows, at the opening's last token.
        states: the residual stream there at each layer, of the harmful rows and then the harmless.
    """

    refusal: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    states: Mapping[int, Float[Tensor, "n d"]]


@dataclass(frozen=True)
class AfterStart:
    """Rows whose responses start affirmatively.

    Attributes:
        harmful: for each opening, token rows of prompt, opening and refusal; with the index where
            the refusal starts.
        harmless: for each opening, rows of prompt and opening; with the base's state at the end.
    """

    harmful: Sequence[Sequence[tuple[list[int], int]]]
    harmless: Sequence[Reference]

    def read(
        self,
        chat: ChatModel,
        layers: Sequence[int],
        bad: Sequence[int],
        good: Sequence[int],
        step: int,
        seed: int,
    ) -> Reading:
        """One forward pass for both classes.

        Args:
            chat: the model in training.
            layers: the critical layers.
            bad: which harmful rows are in the batch.
            good: which harmless rows.
            step: whose opening to draw.
            seed: of the draw.
        """
        # Batches are drawn by `seed` and `seed + 1`.
        drawn = int(torch.randint(len(self.harmful), (1,), generator=seeded(seed + 2, step)))
        kept = self.harmless[drawn]
        rows, begins = zip(*(self.harmful[drawn][i] for i in bad), strict=True)
        whole = [*rows, *(kept.rows[i] for i in good)]
        ends = [begin - 1 for begin in begins] + [kept.firsts[i] for i in good]
        out = forward(chat, whole, layers=layers, keep=min(ends))
        return Reading(
            read_responses(chat, out, rows, begins).cross_entropy()[0],
            kl_from(kept, good, chat, out, len(bad), 1.0),
            {layer: out.at(out.states[layer], range(len(whole)), ends) for layer in layers},
        )


def record_starts(
    chat: ChatModel,
    harmful: Reference,
    harmless: Reference,
    progress: Callable[[int], None] = lambda done: None,
) -> AfterStart:
    """The rows for every opening, and what the base does at the end of the harmless ones.

    Args:
        chat: the base model.
        harmful: rows whose responses refuse.
        harmless: rows whose responses do not matter.
        progress: called with the number of harmless rows read, one for each prompt and opening.
    """
    template = chat.template
    refused = [
        (row[: first + 1], _behind_words(chat, row[first + 1 :]))
        for row, first in zip(harmful.rows, harmful.firsts, strict=True)
    ]
    heads = [r[: first + 1] for r, first in zip(harmless.rows, harmless.firsts, strict=True)]
    rows, references = [], []
    for text in OPENINGS:
        opening = template.encode_response(text)
        rows.append([([*h, *opening, *r], len(h) + len(opening)) for h, r in refused])
        begun = [[*head, *opening] for head in heads]
        ends = [len(row) - 1 for row in begun]
        references.append(record_rows(chat, begun, ends, ends, progress))
    return AfterStart(rows, references)


def _behind_words(chat: ChatModel, refusal: list[int]) -> list[int]:
    """A refusal that goes on from other words: it starts with a space, and ends as it did."""
    stop = [token for token in refusal[-1:] if token in chat.stop_ids]
    return chat.template.encode_response(f" {chat.template.decode(refusal)}") + stop
