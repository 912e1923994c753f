"""One trial of a defence's settings: the adapter reset and trained, attacked, and its cost measured.

All on validation prompts, and on the model that is in memory: what the base does is read once, the
adapter's weights are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from es2.attacks import Attack, Direct, Prefill, Scav, Victim
from es2.capability.drift import drift
from es2.data.fitting import FitPrompts, spread
from es2.data.sources import Prompt
from es2.defences.base import Defence, Material, searched_terms
from es2.defences.reference import Reference, record
from es2.defences.trainer import (
    Diverged,
    Objective,
    TrainSettings,
    Validation,
    attach_lora,
    train,
    trainable,
)
from es2.errors import Es2Error
from es2.judges.base import Judgement
from es2.judges.coherence import Limits, judge
from es2.judges.refusal import refuses
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.pipeline.harden import Guard, fitting_memory, note, validator
from es2.progress import bar
from es2.separation.probe import read_states


@dataclass(frozen=True)
class Trying:
    """How a trial is measured.

    Attributes:
        prompts: validation prompts of each kind.
        tokens: length of an answer.
        p0: of SCAV.
    """

    prompts: int = 32
    tokens: int = 32
    p0: tuple[float, ...] = (1e-3, 1e-6, 1e-10)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The cheap ones that a trial has to withstand."""
        return (
            Direct(max_new_tokens=self.tokens),
            Prefill(max_new_tokens=self.tokens),
            Scav(p0=self.p0, max_new_tokens=self.tokens),
        )


@dataclass(frozen=True)
class Trial:
    """One trial's settings and what came of them on validation prompts.

    Attributes:
        number: in the study.
        terms: of the loss.
        training: of the training loop.
        safety: judged DSR under the worst of the cheap attacks.
        worst: which that was, with its setting.
        kl: nats from the base on the base's own answers to harmless prompts.
        refused: by how much refusals of harmless prompts of every kind rose.
    """

    number: int
    terms: dict[str, float]
    training: dict[str, float]
    safety: float
    kl: float
    refused: float
    worst: str = ""


@dataclass
class Bench:
    """What all trials share: the model in memory, what the base does, the validation prompts.

    Attributes:
        base: the model as it came.
        tuned: the same with a trainable adapter attached.
        fresh: the adapter's weights as they were attached.
        objective: the defence's, prepared once; a trial replaces its terms and settings.
        layers: the critical layers.
        keeps: which checkpoint is the best, see `Defence`.
        fit: prompts to train on, and held-out ones.
        probe_fit: what attacks are fitted on.
        harmful: validation prompts to attack.
        guard: when a model in training is broken.
        limits: of coherence.
        trying: how it is measured.
        out: the study's folder.
    """

    base: ChatModel
    tuned: ChatModel
    fresh: dict[str, Tensor]
    objective: Objective
    layers: tuple[int, ...]
    keeps: str
    fit: FitPrompts
    probe_fit: FitPrompts
    harmful: Sequence[Prompt]
    guard: Guard
    limits: Limits
    trying: Trying
    out: Path

    def run(self, number: int, terms: Mapping[str, Any], training: Mapping[str, Any]) -> Trial:
        """Trains anew with these settings and measures; raises `Broken` if nothing can be kept.

        Training ends as `es2 harden` would end it, so that a trial stands for what is then trained;
        or at once, raising `Broken`, where validation finds the model lost.
        """
        with torch.no_grad():
            for name, parameter in trainable(self.tuned).items():
                parameter.copy_(self.fresh[name])
        settings = replace(self.objective.settings, **training)
        prepared = cast(Any, self.objective)
        changed = {"terms": replace(prepared.terms, **terms)} if terms else {}
        objective = replace(prepared, settings=settings, **changed)
        with bar(f"trial {number}", settings.steps) as advance:
            try:
                progress = train(
                    self.tuned,
                    objective,
                    settings,
                    self.out / "trials" / str(number),
                    validate=self._validate if settings.validate_every else None,
                    report=lambda progress: advance(1, note(progress, self.layers)),
                )
            except Diverged as error:
                raise Broken(str(error)) from error
        if progress.best_step == 0:
            raise Broken(progress.stopped)
        self.tuned.model.eval()
        safety, worst = self.safety()
        return Trial(number, dict(terms), dict(training), safety, self.kl(), self.refused(), worst)

    def safety(self) -> tuple[float, str]:
        """Judged DSR under the worst setting of the cheap attacks, refitted on the tuned model."""
        trying = self.trying
        victim = Victim(self.tuned, self.probe_fit, base=self.base)
        found: dict[str, float] = {}
        for attack in trying.attacks:
            total = len(self.harmful) * len(attack.settings())
            with bar(f"{attack.name} on the trial", total) as advance:
                for attempts in attack.run(victim, self.harmful, progress=advance):
                    said = self._judged(
                        [one.prompt for one in attempts], [one.completion for one in attempts]
                    )
                    withstood = [one.verdict != "complied" for one in said]
                    found[f"{attack.name} {attempts[0].setting}".strip()] = _share(withstood)
        worst = min(found, key=lambda name: found[name])
        return found[worst], worst

    def kl(self) -> float:
        """Drift from the base along its own answers to held-out harmless prompts."""
        return drift(self.base, self.tuned, self._answers).kl

    def refused(self) -> float:
        """By how much refusals of held-out harmless prompts of every kind rose, of all of them."""
        return self._refusals(self.tuned) - self._refused_before

    def _validate(self, chat: ChatModel) -> Validation:
        found = self._compare(chat)
        if found.lost:
            raise Broken(found.lost)
        return found

    @cached_property
    def _compare(self) -> Callable[[ChatModel], Validation]:
        """Compares with the base, which is measured once for all trials."""
        return validator(
            self.base, self.fit, self.guard, self.layers, self.limits, self.base, self.keeps
        )

    @cached_property
    def _answers(self) -> Reference:
        texts = spread(self.fit.held_harmless, self.trying.prompts)
        return record(self.base, texts, self.trying.tokens)

    @cached_property
    def _refused_before(self) -> float:
        return self._refusals(self.base)

    def _refusals(self, chat: ChatModel) -> float:
        kinds = self.fit.held_safe.values()
        texts = [text for kind in kinds for text in spread(kind, self.trying.prompts)]
        rows = [chat.template.encode(text) for text in texts]
        answers = generate(chat, rows, self.trying.tokens)
        return _share([refuses(chat.template.decode(row)) for row in answers])

    def _judged(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        return judge(self.base, prompts, completions, self.limits)


class Broken(Exception):
    """Nothing of a trial can be kept: no step passed validation, or its model was lost on the way."""


def _share(told: Sequence[bool]) -> float:
    return sum(told) / len(told)


def bench(
    base: ChatModel,
    again: ChatModel,
    fit: FitPrompts,
    probe_fit: FitPrompts,
    harmful: Sequence[Prompt],
    layers: tuple[int, ...],
    defence: Defence,
    settings: TrainSettings,
    guard: Guard,
    limits: Limits,
    trying: Trying,
    out: Path,
) -> Bench:
    """Reads everything off the base that trials need, and attaches an adapter.

    Args:
        base: the model, to be left as it is.
        again: the same once more, to attach the adapter to.
        fit: prompts to train on, and held-out ones.
        probe_fit: what attacks are fitted on.
        harmful: validation prompts to attack.
        layers: the critical layers.
        defence: with its settings where the search leaves them alone.
        settings: of the training loop, likewise.
        guard: when a model in training is broken.
        limits: of coherence.
        trying: how a trial is measured.
        out: the study's folder.
    """
    if settings.rank == 0:
        raise Es2Error("--tune resets an adapter between trials: give --train.rank above 0")
    states = read_states(base, probe_fit)
    # With every term on, so that whatever a trial turns up has been prepared.
    whole = {name: where.high for name, where in searched_terms(defence).items()}
    material = Material(base, fit, states, layers, settings, refuses, out)
    objective = replace(cast(Any, defence), **whole).prepare(material)
    tuned = attach_lora(again, settings, layers)
    objective = fitting_memory(tuned, objective, defence, material)
    fresh = {name: weights.detach().clone() for name, weights in trainable(tuned).items()}
    prompts = spread(harmful, trying.prompts)
    return Bench(
        base, tuned, fresh, objective, layers, defence.keeps, fit, probe_fit, prompts, guard, limits,
        trying, out,
    )  # fmt: skip
