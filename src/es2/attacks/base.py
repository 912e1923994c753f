"""What every attack takes and returns.

An attack is a frozen dataclass of settings with a `name`, a `threat` and a `run`. It is handed the
model under attack and prompts to fit itself on, so that it is always refitted; it knows nothing of
how the model was defended, nor of judges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, cast, runtime_checkable

from es2.attacks.budget import Budget
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering
from es2.registry import Registry
from es2.separation.probe import ClassStates, read_states

ThreatModel = Literal[
    "prompt text", "input embeddings", "residual stream", "response prefix", "weights"
]


Report = Callable[..., None]
"""Told of progress: a number of answers, and a note or none."""


def silent(count: int, note: str | None = None) -> None:
    """Tells nobody."""


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
        budget: what it took.
        seed: of the attack.
        norm: mean L2 norm of the perturbation, over the layers and tokens it touched.
        relative_norm: the same over the norm of what it perturbed.
        losses: what was minimised, step by step; empty for attacks that minimise nothing.
        rule: how this completion was selected, where more than one was made.
        details: whatever else the attack wants recorded.
    """

    attack: str
    setting: str
    threat: ThreatModel
    prompt_id: str
    prompt: str
    completion: str
    budget: Budget
    seed: int = 0
    norm: float | None = None
    relative_norm: float | None = None
    losses: list[float] = field(default_factory=list)
    rule: str = ""
    details: dict[str, float | str | list[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        attack: Attack,
        setting: str,
        prompt: Prompt,
        completion: str,
        budget: Budget,
        **rest: Any,
    ) -> Attempt:
        """An attack's try on a prompt; `rest` are the other attributes."""
        return cls(
            attack.name, setting, attack.threat, prompt.id, prompt.text, completion, budget, **rest
        )


@dataclass(frozen=True, eq=False)
class Victim:
    """The model under attack, and what its attacker has to fit on.

    Attributes:
        chat: the model.
        fit: prompts to fit on; never those that the attack is measured on.
        read: reads the model's own embeddings of them.
        base: the model before the defence, where the attacker has it too.
        stale: the attacker knows nothing else: it fits on the base, and answers are the model's.
    """

    chat: ChatModel
    fit: FitPrompts
    read: Callable[[ChatModel, FitPrompts], ClassStates] = read_states
    base: ChatModel | None = None
    stale: bool = False

    @property
    def known(self) -> ChatModel:
        """The model that attacks are fitted on.

        Raises:
            Es2Error: if it is to be the base, and there is none.
        """
        if not self.stale:
            return self.chat
        if self.base is None:
            raise Es2Error("a stale attack is fitted on the undefended model; give it with --base")
        return self.base

    @cached_property
    def states(self) -> ClassStates:
        """The known model's embeddings of the prompts to fit on, read once for all attacks."""
        return self.read(self.known, self.fit)


@runtime_checkable
class Attack(Protocol):
    """An attack with its settings."""

    name: ClassVar[str]
    threat: ClassVar[ThreatModel]

    @property
    def published(self) -> tuple[str, ...]:
        """Those of its settings under which it is what was published; often a class attribute."""
        ...

    def settings(self) -> Sequence[str]:
        """The settings that `run` sweeps; the attacker keeps the best."""
        ...

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Attacks every prompt under every setting that is not to be skipped.

        Args:
            victim: the model, and what to fit on.
            prompts: harmful prompts to get an answer to.
            skip: settings that an earlier, interrupted run has finished.
            progress: called with the number of answers that are new, and at times with 0 and a
                note of what goes on.

        Yields:
            Portions of attempts, all together one for every prompt and setting. What a portion
            holds is recorded at once. Attacks that search for long yield prompt after prompt and say
            so by an attribute `prompt_by_prompt`: a kill then loses one prompt's search at the
            most. Others yield setting after setting. What a prompt gets does not depend on the
            other prompts.
        """
        ...


def as_given(attack: object, *swept: str) -> bool:
    """Whether all of an attack's own settings but these are the defaults.

    The length of an answer and the seed are no part of what was published. (An attack is not called
    `Attack` here: to see that it is one, its `published` is looked up, which asks this.)
    """
    free = {*swept, "max_new_tokens", "seed"}
    known = [one for one in fields(cast(Any, attack)) if one.name not in free]
    return all(getattr(attack, one.name) == one.default for one in known)


ATTACKS: Registry[type[Attack]] = Registry("attack", "es2.attacks")
"""All attacks by name: es2's own, and those of other packages, see `Registry`."""


def expected_work(attack: Attack, lengths: Lengths, prompts: int, rows: int) -> Work:
    """What attacking so many prompts will take at most, before anything is run.

    An attack that does more than answer each prompt under each setting says so itself, by a method
    `expected` of the same arguments but the first.

    Args:
        attack: with its settings.
        lengths: of the prompts, in tokens.
        prompts: how many.
        rows: of a batch without gradient, see `ChatModel.batch_size`.
    """
    own = getattr(attack, "expected", None)
    if own is not None:
        found: Work = own(lengths, prompts, rows)
        return found
    new = getattr(attack, "max_new_tokens", 48)
    return answering(prompts, lengths.own, new, rows, lengths.head).times(len(attack.settings()))
