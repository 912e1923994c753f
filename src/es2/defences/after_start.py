"""Behind an affirmative start: what a model does once its response has begun with "Sure".

Refusal that is decided at the last prompt token alone is stepped past by a response whose first
words are given (Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", arXiv
2406.05946). So the batch is read once more with affirmative openings, or answers under way, as the
responses' starts: harmful rows are to refuse from there on, harmless ones to go on as the base does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from es2.defences.beginnings import Beginnings
from es2.defences.reference import Reference, kl_from, record_rows
from es2.defences.responses import read_responses
from es2.models.forward import Starts, forward
from es2.models.loading import ChatModel


@dataclass(frozen=True)
class Reading:
    """What a model in training does behind the starts of a step.

    Attributes:
        refusal: cross-entropy of the harmful rows' refusals.
        kl: from the base, on harmless rows, at the start's last token.
        states: the residual stream there at each layer, of the harmful rows and then the harmless.
    """

    refusal: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    states: Mapping[int, Float[Tensor, "n d"]]


@dataclass(frozen=True)
class AfterStart:
    """Rows whose responses have begun.

    Attributes:
        harmful: token rows of prompt, start and refusal; with the index where the refusal starts.
        harmless: rows of prompt and start; with the base's state at the end.
    """

    harmful: Sequence[tuple[list[int], int]]
    harmless: Reference

    def read(
        self,
        chat: ChatModel,
        layers: Sequence[int],
        bad: Sequence[int],
        good: Sequence[int],
        before: Starts | None = None,
    ) -> Reading:
        """One forward pass for both classes.

        Args:
            chat: the model in training.
            layers: the critical layers.
            bad: which harmful rows are in the batch.
            good: which harmless rows.
            before: what these rows start with, if it has been read.
        """
        rows, begins = zip(*(self.harmful[i] for i in bad), strict=True)
        whole = [*rows, *(self.harmless.rows[i] for i in good)]
        ends = [begin - 1 for begin in begins] + [self.harmless.firsts[i] for i in good]
        out = forward(chat, whole, layers=layers, keep=min(ends), starts=before)
        return Reading(
            read_responses(chat, out, rows, begins).cross_entropy()[0],
            kl_from(self.harmless, good, chat, out, len(bad), 1.0),
            {layer: out.at(out.states[layer], range(len(whole)), ends) for layer in layers},
        )


def record_starts(
    chat: ChatModel,
    harmful: Reference,
    harmless: Reference,
    starts: Beginnings,
    progress: Callable[[int], None] = lambda done: None,
) -> AfterStart:
    """The rows with their starts, and what the base does at the end of the harmless ones.

    Args:
        chat: the base model.
        harmful: rows whose responses refuse.
        harmless: rows whose responses do not matter.
        starts: how responses begin, as token ids, of both classes.
        progress: called with the number of harmless rows read.
    """
    bad, good = starts
    refused = [
        begun(chat, row, first, start)
        for row, first, start in zip(harmful.rows, harmful.firsts, bad, strict=True)
    ]
    heads = harmless.prompts(range(len(harmless)))
    rows = [[*head, *start] for head, start in zip(heads, good, strict=True)]
    ends = [len(row) - 1 for row in rows]
    return AfterStart(refused, record_rows(chat, rows, ends, ends, progress))


def begun(
    chat: ChatModel, row: Sequence[int], first: int, start: Sequence[int]
) -> tuple[list[int], int]:
    """A row whose refusal stands behind a start of the response, and where it begins.

    Args:
        chat: the model.
        row: token ids of a templated prompt and its refusal.
        first: the last prompt position.
        start: token ids; none leaves the row as it is.
    """
    head, refusal = [*row[: first + 1], *start], list(row[first + 1 :])
    return [*head, *(_behind_words(chat, refusal) if start else refusal)], len(head)


def _behind_words(chat: ChatModel, refusal: list[int]) -> list[int]:
    """A refusal that goes on from other words: it starts with a space, and ends as it did."""
    stop = [token for token in refusal[-1:] if token in chat.stop_ids]
    return chat.template.encode_response(f" {chat.template.decode(refusal)}") + stop
