"""How much a model has to do, counted in tokens before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

_LARGEST = ("batch", "held", "scored")
"""What work done one after the other has the most of, not the sum."""


@dataclass(frozen=True)
class Work:
    """Tokens through the model; at most so many, as nothing is known of answers that end early.

    Attributes:
        read: read without gradient, all positions of a row at once.
        graded: read with gradient.
        written: generated.
        passes: passes with so few tokens that reading the weights takes longer than arithmetic: one
            for every token that a batch writes.
        drafted: read by another, smaller model.
        batch: the most tokens in one pass with gradient.
        held: the most tokens whose keys and values are kept at once.
        scored: the most positions whose logits are kept for a gradient.
    """

    read: float = 0.0
    graded: float = 0.0
    written: float = 0.0
    passes: float = 0.0
    drafted: float = 0.0
    batch: float = 0.0
    held: float = 0.0
    scored: float = 0.0

    def __add__(self, other: Work) -> Work:
        """One after the other."""
        return Work(
            **{
                one.name: (max if one.name in _LARGEST else _sum)(
                    getattr(self, one.name), getattr(other, one.name)
                )
                for one in fields(self)
            }
        )

    def times(self, count: float) -> Work:
        """The same again and again."""
        return Work(
            **{
                one.name: getattr(self, one.name) * (1 if one.name in _LARGEST else count)
                for one in fields(self)
            }
        )

    @property
    def tokens(self) -> float:
        """All of them, as a `Budget` counts forward tokens."""
        return self.read + self.graded + self.written + self.drafted


def _sum(one: float, two: float) -> float:
    return one + two


@dataclass(frozen=True)
class Lengths:
    """How long templated prompts are, in tokens.

    Attributes:
        head: of the template before the user's text: the same for all prompts, and read once.
        tail: of the template behind it.
        prompt: of the user's text, on average.
        target: of the response's start that attacks aim at, on average.
        count: of any text.
    """

    head: float
    tail: float
    prompt: float
    target: float
    count: Callable[[str], float]

    @property
    def own(self) -> float:
        """What is each row's own: all but the head."""
        return self.prompt + self.tail

    def mean(self, texts: Sequence[str]) -> float:
        """Of texts, on average; 0 for none."""
        return sum(map(self.count, texts)) / len(texts) if texts else 0.0


def answering(prompts: float, own: float, new: float, rows: int, head: float = 0.0) -> Work:
    """The work of answering prompts in batches.

    Args:
        prompts: how many.
        own: tokens of each that it does not share with the others.
        new: tokens of an answer.
        rows: prompts in a batch.
        head: tokens that all share.
    """
    if not prompts:
        return Work()
    return Work(
        read=head + prompts * own,
        written=prompts * new,
        passes=math.ceil(prompts / rows) * new,
        held=head + min(prompts, rows) * (own + new),
    )


def reading(prompts: float, own: float, rows: int, head: float = 0.0) -> Work:
    """The work of reading prompts once in batches; arguments as of `answering`."""
    if not prompts:
        return Work()
    return Work(read=head + prompts * own, held=head + min(prompts, rows) * own)


def training(steps: int, rows: float, own: float, scored: float, head: float = 0.0) -> Work:
    """The work of training steps.

    Args:
        steps: how many.
        rows: in a step.
        own: tokens of each that it does not share with the others.
        scored: positions in a step whose logits the loss reads.
        head: tokens that all share; with gradient, once a step.
    """
    batch = head + rows * own
    return Work(graded=steps * batch, batch=batch, scored=scored)
