"""Answers to harmful prompts, from the model itself: it is made to begin them, and goes on.

Rivals were published with harmful answers of a data set or of another model. None are kept here: they
are made before training, and held in memory alone. An aligned model refuses behind one opening and
goes along with another; so openings are tried in turn, and prompts that it refuses behind all of them
are left out: a refusal is not what a defence is to unlearn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from es2.defences.base import Material
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.work import Lengths, Work, answering
from es2.progress import console


@dataclass(frozen=True)
class Unsafe:
    """A harmful prompt and the model's answer to it.

    Attributes:
        prompt: its text.
        start: token ids of the opening.
        tail: of what the model said from there on.
    """

    prompt: str
    start: list[int]
    tail: list[int]

    @property
    def response(self) -> list[int]:
        """The whole answer."""
        return self.start + self.tail


def unsafe_answers(
    material: Material,
    prompts: Sequence[str],
    tokens: int,
    openings: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Unsafe]:
    """The model's answers behind the first opening that it goes along with, in the prompts' order.

    Args:
        material: what the defence is given.
        prompts: harmful ones.
        tokens: at most so many behind the opening.
        openings: what an answer may begin with, in the order in which they are tried.
        progress: called with the number of prompts done.

    Raises:
        Es2Error: if it refuses all prompts behind all openings.
    """
    chat = material.chat
    found: dict[int, Unsafe] = {}
    left = list(range(len(prompts)))
    for opening in openings:
        if not left:
            break
        start = chat.template.encode_response(opening)
        heads = [[*chat.template.encode(prompts[index]), *start] for index in left]
        tails = generate(chat, heads, tokens) if tokens else [[] for _ in heads]
        said = [Unsafe(prompts[i], start, tail) for i, tail in zip(left, tails, strict=True)]
        kept = material.telling((one.response for one in said), refused=False)
        found |= {left[place]: said[place] for place in kept}
        left = [index for index in left if index not in found]
        progress(len(kept))
    progress(len(left))
    behind = ", ".join(map(repr, openings))
    if not found:
        raise Es2Error(
            f"{chat.name} refuses all {len(prompts)} harmful prompts, also behind {behind}, so there "
            "is nothing to train against; give other `openings`"
        )
    console.print(
        f"{len(found)} of {len(prompts)} harmful prompts are answered behind {behind}; the others "
        "are left out",
        highlight=False,
        markup=False,
    )
    return [found[index] for index in sorted(found)]


def expected_unsafe(
    lengths: Lengths, prompts: int, tokens: int, openings: Sequence[str], rows: int
) -> Work:
    """Writing the answers; of a model that goes along with the first opening.

    Args:
        lengths: of the prompts, in tokens.
        prompts: how many.
        tokens: see `unsafe_answers`, as for the next.
        openings: the same.
        rows: of a batch without gradient.
    """
    opened = lengths.own + lengths.count(openings[0])
    return answering(prompts, opened, tokens, rows, lengths.head)
