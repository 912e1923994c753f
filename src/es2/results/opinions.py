"""`verdicts.jsonl`, a line an attempt and judge, and `judges.json`, what several judges make of a run.

All shares are fractions of 1. A judge's DSR is the share of the attempts it could read on which it
found that the attacker did not get what the prompt asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any, Literal

from pydantic import Field

from es2.judges.base import Opinion
from es2.results.rates import Rate
from es2.results.schema import Record

VERDICTS_FILE = "verdicts.jsonl"
JUDGES_FILE = "judges.json"

Key = tuple[str, str, str, str, str, str]
"""Which attempt: defence, kind, attack, setting, prompt and a hash of the completion."""

_PARTS = ("defence", "kind", "attack", "setting", "prompt_id")


class JudgedSetting(Record):
    """What a judge makes of one setting of an attack.

    Attributes:
        dsr: share of readable attempts that it finds not harmful; null if it could read none.
        score: mean harm, 0 to 1; null for a judge without scores.
        unjudged: attempts that it was asked about and gave no reading of.
    """

    dsr: Rate | None
    score: float | None = None
    unjudged: int = 0


class JudgedAttack(JudgedSetting):
    """The same at the attacker's best setting: the one with the lowest DSR by this judge.

    Attributes:
        setting: that setting.
        settings: every one of them.
    """

    setting: str
    settings: dict[str, JudgedSetting]


class JudgeResult(Record):
    """One judge over a whole run.

    Attributes:
        version: of the judge.
        defences: attacks' results by attack, by defence.
        judged: attempts with a reading.
        unjudged: attempts without.
        why: how many of those, by the reason.
    """

    version: str
    defences: dict[str, dict[str, JudgedAttack]]
    judged: int
    unjudged: int
    why: dict[str, int] = Field(default_factory=dict)


class Agreement(Record):
    """How far two judges agree on what is harmful.

    Attributes:
        judges: the two.
        share: of the attempts that both could read, those on which they agree.
        kappa: Cohen's; null where both find all attempts alike, so that there is nothing to explain.
    """

    judges: tuple[str, str]
    share: Rate
    kappa: float | None


class Spending(Record):
    """What asking the endpoint has taken in all, resumed runs included.

    Attributes:
        answers: that were paid for.
        tokens_in: tokens read, where the endpoint counted them.
        tokens_out: tokens written.
        cost: at the prices given at the time; null if there were none.
    """

    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float | None = None


def together(several: Iterable[Spending]) -> Spending:
    """What several runs, or answers, have taken in all; a cost if any of them had one."""
    found = list(several)
    costs = [one.cost for one in found if one.cost is not None]
    return Spending(
        answers=sum(one.answers for one in found),
        tokens_in=sum(one.tokens_in for one in found),
        tokens_out=sum(one.tokens_out for one in found),
        cost=sum(costs) if costs else None,
    )


class Judges(Record):
    """The whole of `judges.json`.

    Attributes:
        judges: each by its name.
        agreement: of every two of them that read the same attempts.
        spending: on endpoints.
    """

    schema_version: Literal[1] = 1
    judges: dict[str, JudgeResult]
    agreement: list[Agreement] = Field(default_factory=list)
    spending: Spending = Spending()


def attempt_key(attempt: Mapping[str, Any]) -> Key:
    """The key of a record of `attempts.jsonl`, or of a line of `verdicts.jsonl`.

    Raises:
        KeyError: if the record lacks a field.
    """
    if "completion_sha" in attempt:
        sha = attempt["completion_sha"]
    else:
        sha = sha256(attempt["completion"].encode(errors="replace")).hexdigest()[:16]
    defence, kind, name, setting, prompt = (str(attempt[part]) for part in _PARTS)
    return defence, kind, name, setting, prompt, sha


def verdict_record(key: Key, opinion: Opinion) -> dict[str, Any]:
    """One line of `verdicts.jsonl`."""
    return {**dict(zip((*_PARTS, "completion_sha"), key, strict=True)), **asdict(opinion)}


def settled(line: Mapping[str, Any]) -> bool:
    """Whether a line need not be asked for again: there is a reading, or an answer that has none.

    A judge that could not be had put nothing out, and may be had another time.
    """
    return line["harmful"] is not None or bool(line["raw"])
