"""What every defence takes and gives: it is shown a model and prompts, and says what to minimise.

A defence is a frozen dataclass of settings with a `name`, training settings as published and a
`prepare`. The trainer (`defences/trainer.py`) does the rest, the same for all: LoRA, batches,
checkpoints, resume, logging.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from es2.data.fitting import FitPrompts, spread
from es2.defences.trainer import Objective, TrainSettings
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, reading, training
from es2.registry import Registry
from es2.separation.probe import ClassStates


@dataclass(frozen=True)
class Material:
    """What a defence is given to prepare itself with.

    Attributes:
        chat: the model as it is; nothing is attached to it yet.
        fit: prompts to train on, and held-out ones.
        states: the model's embeddings of prompts of both classes.
        layers: the critical layers, in ascending order.
        settings: of the training loop.
        refuses: whether a text refuses.
        out: the run's folder, for what is to outlive a kill.
    """

    chat: ChatModel
    fit: FitPrompts
    states: ClassStates
    layers: tuple[int, ...]
    settings: TrainSettings
    refuses: Callable[[str], bool]
    out: Path

    def telling(self, responses: Iterable[list[int]], refused: bool) -> list[int]:
        """Which of some responses, given as tokens, refuse; or which do not."""
        said = [self.refuses(self.chat.template.decode(response)) for response in responses]
        return [index for index, told in enumerate(said) if told == refused]

    def seen(self, group: Sequence[str], per_step: int | None = None) -> list[str]:
        """As many prompts of a class as training will see, from everywhere in it.

        Args:
            group: the class's prompts.
            per_step: of them in a step; None for the batch size.
        """
        return spread(group, self.settings.steps * (per_step or self.settings.batch_size))


Some = TypeVar("Some", bound=Sized)


def unless_few(kept: Some, whole: Some) -> Some:
    """What a rule keeps, or the whole where that is less than a quarter of it.

    A rule that leaves hardly anything does not fit the model: one that is not aligned refuses nothing.
    """
    return kept if len(kept) >= len(whole) / 4 else whole


@runtime_checkable
class Defence(Protocol):
    """Turns a model into a defended one.

    Attributes:
        name: as recipes and records have it.
        source: where it is published.
        published: how the publication trains, in this trainer's terms.
        keeps: which validated checkpoint is the best, of those that are not broken: the one with
            the greatest `distance` between the classes, or the `last`.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    published: ClassVar[TrainSettings]
    keeps: ClassVar[str]

    def prepare(self, material: Material) -> Objective:
        """What to minimise: everything that is read off the model before training is read here."""
        ...


@dataclass(frozen=True)
class Range:
    """Where a setting is looked for; `log` if its logarithm is drawn evenly."""

    low: float
    high: float
    log: bool = False


DEFENCES: Registry[type[Defence]] = Registry("defence", "es2.defences")
"""All defences by name: es2's own and those that installed packages bring."""


def searched_terms(defence: Defence) -> Mapping[str, Range]:
    """Which of its loss's settings a search may move, from the class attribute `searched`.

    They are settings that `prepare` reads at most to see whether they are above 0, and that its
    objective has under `terms`: trials then share what was prepared. A defence without has its
    training searched alone. A term that is switched off, at 0 below its range, stays off.
    """
    searched: Mapping[str, Range] = getattr(defence, "searched", {})
    return {
        name: where
        for name, where in searched.items()
        if getattr(defence, name) != 0 or where.low <= 0
    }


_RESPONSE = 48
"""Tokens of a response, where a defence does not say."""


def expected_work(
    defence: Defence,
    settings: TrainSettings,
    lengths: Lengths,
    harmful: int,
    harmless: int,
    rows: int,
) -> Work:
    """What preparing and training a defence will take at most, before anything is run.

    A defence says so itself by a method `expected` of the same arguments but the first. One that does
    not is taken to read a batch of each class a step, with a response of 48 tokens, once without
    gradient too.

    Args:
        defence: with its settings.
        settings: of the training loop.
        lengths: of the prompts, in tokens.
        harmful: prompts to fit on.
        harmless: the same.
        rows: of a batch without gradient.
    """
    own = getattr(defence, "expected", None)
    if own is not None:
        found: Work = own(settings, lengths, harmful, harmless, rows)
        return found
    batch = sum(min(settings.batch_size, count) for count in (harmful, harmless))
    row = lengths.own + _RESPONSE
    trained = training(settings.steps, batch, row, batch * _RESPONSE, lengths.head)
    return trained + reading(settings.steps * batch, row, rows)


def seen_count(settings: TrainSettings, count: int, per_step: int | None = None) -> int:
    """How many of a class's prompts training will see, see `Material.seen`."""
    return min(count, settings.steps * (per_step or settings.batch_size))
