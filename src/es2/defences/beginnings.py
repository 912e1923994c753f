"""How a response in training begins: with an affirmative opening, or with an answer well under way.

A model that is taught to refuse behind short openings alone babbles where an attack puts half an
answer into its mouth. So it is made to answer, by the openings that it goes along with, and what it
says is cut at several depths; harmless answers are cut as deep, or the depth would tell the classes
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

from es2.attacks.target import OPENINGS
from es2.defences.base import Material
from es2.defences.reference import Reference
from es2.defences.unsafe import behind_openings, expected_unsafe
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work

DEPTHS = (4, 8, 16, 24)
"""How many tokens of an answer stand behind its opening."""

Beginnings = tuple[Sequence[list[int]], Sequence[list[int]]]
"""Of harmful rows and of harmless ones, as token ids; one for each row."""


def harmful_beginnings(
    material: Material, harmful: Reference, progress: Callable[[int], None] = lambda done: None
) -> list[list[int]]:
    """Openings and the starts of answers behind them; an opening alone where all are refused.

    Args:
        material: what the defence is given.
        harmful: the rows.
        progress: called with the number of rows done.
    """
    template = material.chat.template
    openings = cycle([template.encode_response(text) for text in OPENINGS])
    depths, heads = cycle(DEPTHS), harmful.prompts(range(len(harmful)))
    answered = behind_openings(material, heads, max(DEPTHS), OPENINGS, progress)
    starts = []
    for index in range(len(harmful)):
        if index in answered:
            opening, tail = answered[index]
            starts.append([*opening, *tail[: next(depths)]])
        else:
            starts.append(next(openings))
    return starts


def harmless_beginnings(chat: ChatModel, answers: Reference) -> list[list[int]]:
    """Openings and starts of the base's own answers, in turn.

    Args:
        chat: the base model.
        answers: harmless rows with their answers.
    """
    openings = cycle([chat.template.encode_response(text) for text in OPENINGS])
    depths = cycle(DEPTHS)
    return [
        row[first + 1 :][: next(depths)] if index % 2 else next(openings)
        for index, (row, first) in enumerate(zip(answers.rows, answers.firsts, strict=True))
    ]


def expected_beginnings(lengths: Lengths, harmful: int, rows: int) -> Work:
    """Writing answers to harmful prompts; of a model that goes along with the first opening.

    Args:
        lengths: of the prompts, in tokens.
        harmful: prompts to fit on that are seen.
        rows: of a batch without gradient.
    """
    return expected_unsafe(lengths, harmful, max(DEPTHS), OPENINGS, rows)


def longest(lengths: Lengths) -> float:
    """Tokens of the longest beginning.

    Args:
        lengths: counts tokens of texts.
    """
    return max(map(lengths.count, OPENINGS)) + max(DEPTHS)
