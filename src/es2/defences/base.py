"""What every defence takes and gives: it is shown a model and prompts, and says what to minimise.

A defence is a frozen dataclass of settings with a `name`, training settings as published and a
`prepare`. The trainer (`defences/trainer.py`) does the rest, the same for all: LoRA, batches,
checkpoints, resume, logging.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from es2.data.fitting import FitPrompts, spread
from es2.defences.trainer import Objective, TrainSettings
from es2.models.loading import ChatModel
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

    def seen(self, group: Sequence[str], per_step: int | None = None) -> list[str]:
        """As many prompts of a class as training will see, from everywhere in it.

        Args:
            group: the class's prompts.
            per_step: of them in a step; None for the batch size.
        """
        return spread(group, self.settings.steps * (per_step or self.settings.batch_size))


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


DEFENCES: Registry[type[Defence]] = Registry("defence", "es2.defences")
"""All defences by name: es2's own and those that installed packages bring."""
