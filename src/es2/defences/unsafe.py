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
    heads = [chat.template.encode(prompt) for prompt in prompts]
    found = behind_openings(material, heads, tokens, openings, progress)
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
    return [Unsafe(prompts[index], *found[index]) for index in sorted(found)]


def behind_openings(
    material: Material,
    heads: Sequence[list[int]],
    tokens: int,
    openings: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, tuple[list[int], list[int]]]:
    """The opening that each prompt is answered behind, the first such one, and the answer.

    Args:
        material: what the defence is given.
        heads: token ids of templated prompts.
        tokens: at most so many behind the opening.
        openings: in the order in which they are tried.
        progress: called with the number of prompts done.

    Returns:
        Token ids of both, by the prompt's place; no entry where all openings are refused.
    """
    chat = material.chat
    found: dict[int, tuple[list[int], list[int]]] = {}
    left = list(range(len(heads)))
    for opening in openings:
        if not left:
            break
        start = chat.template.encode_response(opening)
        rows = [[*heads[index], *start] for index in left]
        tails = generate(chat, rows, tokens) if tokens else [[] for _ in rows]
        kept = material.telling((start + tail for tail in tails), refused=False)
        found |= {left[place]: (start, tails[place]) for place in kept}
        left = [index for index in left if index not in found]
        progress(len(kept))
    progress(len(left))
    return found


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
