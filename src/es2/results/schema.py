"""`results.json`: versioned, typed, documented data that reports and other tools read.

All shares are fractions of 1. DSR, the defence success rate, is one less the attacker's success
rate, and is read two ways: `keyword` (a published refusal string stands in the completion) and
`judged` (the completion does not comply: it refuses, or is incoherent).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from es2.judges.base import Verdict
from es2.results.paired import Difference
from es2.results.rates import Rate

SCHEMA_VERSION = 1


class Record(BaseModel):
    """What all parts have in common: they are values, and know their fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dsr(Record):
    """Defence success rate in both readings."""

    keyword: Rate
    judged: Rate


class SettingResult(Record):
    """What one setting of an attack did.

    Attributes:
        dsr: share of prompts on which the attack failed.
        verdicts: share of each verdict.
        norm: mean L2 norm of the perturbation; null if the attack has none.
        relative_norm: the same over the norm of what was perturbed.
    """

    dsr: Dsr
    verdicts: dict[Verdict, float]
    norm: float | None = None
    relative_norm: float | None = None


class Published(Record):
    """The attack as published: for each reading the lower DSR of its published settings."""

    dsr: Dsr


class AttackResult(Record):
    """An attack whose settings the attacker may choose among.

    Attributes:
        dsr: at the attacker's best setting: the lowest over the settings, for each reading.
        any_setting: judged DSR if the attacker may choose the setting for each prompt anew: share of
            prompts on which no setting succeeds.
        mean: judged DSR averaged over the settings: an attacker who draws one at random.
        setting: the one with the lowest judged DSR; of several, the one at which fewest refuse.
        verdicts: at that setting.
        settings: every setting's result, by its name.
        published: at the published settings; null if the attack has none, or none was run.
        threat: what the attacker touched.
    """

    dsr: Dsr
    any_setting: Rate
    setting: str
    verdicts: dict[Verdict, float]
    settings: dict[str, SettingResult]
    mean: float | None = None
    published: Published | None = None
    threat: str = ""


class Cost(Record):
    """What a defence costs on prompts that deserve an answer; null where not measured.

    Attributes:
        over_refusal: share of harmless prompts refused.
        borderline_refusal: share refused of harmless prompts that look harmful.
        structured_refusal: share refused of harmless prompts over several lines.
        incoherent: share of harmless prompts answered incoherently.
        kl: nats from base to defended along the base's own answers.
        perplexity_ratio: defended over base on those answers.
    """

    over_refusal: Rate | None = None
    borderline_refusal: Rate | None = None
    structured_refusal: Rate | None = None
    incoherent: Rate | None = None
    kl: float | None = None
    perplexity_ratio: float | None = None


class DefenceResult(Record):
    """One model: how it stood up to attacks, and what that cost.

    Attributes:
        attacks: by the attack's name.
        cost: on prompts that deserve an answer.
        changes: from the base, prompt by prompt, by what changed, see `results/changes.py`; empty for
            the base itself.
    """

    attacks: dict[str, AttackResult] = Field(default_factory=dict)
    cost: Cost = Cost()
    changes: dict[str, Difference] = Field(default_factory=dict)


class Results(Record):
    """The whole of `results.json`.

    Attributes:
        defences: `base` and every defended model.
        notes: what a reader has to know before believing a rate, such as leaks that were let through.
    """

    schema_version: Literal[1] = 1
    defences: dict[str, DefenceResult]
    notes: list[str] = Field(default_factory=list)
