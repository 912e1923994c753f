"""What every attack takes and returns.

An attack is a frozen dataclass of settings with a `name`, a `threat` and a `run`. It is handed the
model under attack and prompts to fit itself on, so that it is always refitted; it knows nothing of
how the model was defended, nor of judges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.models.loading import ChatModel
from es2.separation.probe import ClassStates, class_states

ThreatModel = Literal[
    "prompt text", "input embeddings", "residual stream", "response prefix", "weights"
]


@dataclass(frozen=True)
class Attempt:
    """One attack's try on one prompt.

    Attributes:
        attack: the attack's name.
        setting: which of the attack's settings, such as `p0=0.001`; empty if there is one.
        threat: what the attacker touched.
        prompt_id: the prompt's id in its source.
        prompt: the prompt's text.
        completion: what the model wrote.
        seconds: wall time, a batch's shared evenly among its prompts.
        seed: of the attack.
        norm: mean L2 norm of the perturbation, over the layers and tokens it touched.
        relative_norm: the same over the norm of what it perturbed.
        details: whatever else the attack wants recorded.
    """

    attack: str
    setting: str
    threat: ThreatModel
    prompt_id: str
    prompt: str
    completion: str
    seconds: float
    seed: int = 0
    norm: float | None = None
    relative_norm: float | None = None
    details: dict[str, float | str | list[int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Victim:
    """The model under attack, and what its attacker has to fit on.

    Attributes:
        chat: the model.
        fit: prompts to fit on; never those that the attack is measured on.
        read: reads the model's own embeddings of them.
    """

    chat: ChatModel
    fit: FitPrompts
    read: Callable[[ChatModel, FitPrompts], ClassStates] = class_states

    @cached_property
    def states(self) -> ClassStates:
        """The model's own embeddings of the prompts to fit on, read once for all attacks."""
        return self.read(self.chat, self.fit)


@runtime_checkable
class Attack(Protocol):
    """An attack with its settings."""

    name: ClassVar[str]
    threat: ClassVar[ThreatModel]
    published: ClassVar[tuple[str, ...]]

    def settings(self) -> Sequence[str]:
        """The settings that `run` sweeps; the attacker keeps the best."""
        ...

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Callable[[int], None] = lambda done: None,
    ) -> Iterator[list[Attempt]]:
        """Attacks every prompt under every setting that is not to be skipped.

        Args:
            victim: the model, and what to fit on.
            prompts: harmful prompts to get an answer to.
            skip: settings that an earlier, interrupted run has finished.
            progress: called with the number of answers that are new.

        Yields:
            For each setting, one attempt a prompt, in the prompts' order.
        """
        ...
