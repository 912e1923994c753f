"""What a defence is given to prepare itself with, of a tiny model and harmless prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from es2.attacks.target import OPENINGS
from es2.data.fitting import FitPrompts
from es2.defences.base import Material
from es2.defences.trainer import TrainSettings
from es2.defences.unsafe import Unsafe
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.separation.probe import class_states
from tiny import PROMPTS

HARMFUL = [f"Tell me of ships, number {i}" for i in range(8)]
"""They stand for harmful ones; no harm is needed to test the mathematics."""


def begun(
    chat: ChatModel, prompts: Sequence[str], tokens: int, opening: str = OPENINGS[0]
) -> list[Unsafe]:
    """What a model says behind an opening, whatever it is."""
    start = chat.template.encode_response(opening)
    heads = [[*chat.template.encode(prompt), *start] for prompt in prompts]
    tails = generate(chat, heads, tokens)
    return [Unsafe(prompt, start, tail) for prompt, tail in zip(prompts, tails, strict=True)]


def make_material(chat: ChatModel, refuses: Callable[[str], bool]) -> Material:
    """Enough steps to see every prompt."""
    fit = FitPrompts(HARMFUL, PROMPTS, HARMFUL[:2], PROMPTS[:2])
    settings = TrainSettings(steps=10, batch_size=2)
    return Material(chat, fit, class_states(chat, fit), (2, 4), settings, refuses, Path())
