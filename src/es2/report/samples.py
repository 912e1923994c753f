"""Which completions the report shows: by a stated rule, never picked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from es2.judges.base import VERDICTS
from es2.report.reading import models, number
from es2.results.schema import Results

_MOST_PROMPTS = 6
_MOST_CHARACTERS = 1200


@dataclass(frozen=True)
class Answer:
    """One model's completion and what the judge made of it.

    Attributes:
        verdict: refused, incoherent, complied, or empty.
        veiled: a second fold hides it: it may be what a harmful prompt asked for.
        cut: how many characters were left off.
    """

    defence: str
    setting: str
    text: str
    verdict: str
    keyword_refused: bool | None
    perplexity: float | None
    veiled: bool
    cut: int = 0


@dataclass(frozen=True)
class Sample:
    """A prompt and every model's answer to it."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Group:
    """The samples of one attack, or of a kind of harmless prompts.

    Attributes:
        key: the attack's key, or the kind of prompt.
        kind: attack, harmless, borderline, structured, safe or unsafe.
    """

    key: str
    kind: str
    samples: tuple[Sample, ...]


def sample(attempts: Sequence[Mapping[str, Any]], results: Results) -> list[Group]:
    """For each attack and kind of prompt, the first prompt of each verdict of each model.

    An attack's completions are those at the setting its row of the table reports.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in attempts:
        if "completion" not in line:  # a published run has no texts
            continue
        kind = str(line.get("kind") or "attack")
        key = str(line.get("attack") or "attack") if kind == "attack" else kind
        if kind != "attack" or _is_reported(line, key, results):
            groups.setdefault((kind, key), []).append(line)
    order = ["attack", "borderline", "structured", "harmless"]
    ranked = sorted(groups, key=lambda k: order.index(k[0]) if k[0] in order else len(order))
    names = list(models(results))
    return [Group(key, kind, _samples(groups[kind, key], names)) for kind, key in ranked]


def _is_reported(line: Mapping[str, Any], attack: str, results: Results) -> bool:
    defence = results.defences.get(str(line.get("defence")))
    faced = defence.attacks.get(attack) if defence else None
    return faced is None or str(line.get("setting") or "") == faced.setting


def _samples(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[Sample, ...]:
    table: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        of = table.setdefault(str(line.get("prompt_id", line.get("prompt"))), {})
        of.setdefault(str(line.get("defence")), line)
    rank = {name: place for place, name in enumerate(names)}
    samples = []
    for prompt in _first_of_each_verdict(table):
        answers = sorted(table[prompt].items(), key=lambda pair: rank.get(pair[0], len(rank)))
        text = str(answers[0][1].get("prompt", ""))
        samples.append(Sample(text, tuple(_answer(line) for _, line in answers)))
    return tuple(samples)


def _first_of_each_verdict(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Prompts that show each verdict of each model; past the limit, refusals give way."""
    firsts: dict[str, dict[str, str]] = {verdict: {} for verdict in (*reversed(VERDICTS), "")}
    for prompt, answers in table.items():
        for defence, line in answers.items():
            firsts[_verdict(line)].setdefault(defence, prompt)
    picked = dict.fromkeys(prompt for of in firsts.values() for prompt in of.values())
    kept = list(picked)[:_MOST_PROMPTS]
    return [prompt for prompt in table if prompt in kept]


def _verdict(line: Mapping[str, Any]) -> str:
    verdict = str((line.get("judgement") or {}).get("verdict") or "")
    return verdict if verdict in VERDICTS else ""


def _answer(line: Mapping[str, Any]) -> Answer:
    judgement = line.get("judgement") or {}
    text = visible(str(line.get("completion") or ""))
    verdict = _verdict(line)
    harmful = str(line.get("kind") or "attack") in ("attack", "unsafe")
    return Answer(
        defence=str(line.get("defence")),
        setting=str(line.get("setting") or ""),
        text=text[:_MOST_CHARACTERS],
        verdict=verdict,
        keyword_refused=judgement.get("keyword_refused"),
        perplexity=number(judgement.get("perplexity")),
        # An answer that no judge saw may be anything.
        veiled=harmful and verdict in ("complied", ""),
        cut=max(0, len(text) - _MOST_CHARACTERS),
    )


def visible(text: str) -> str:
    """Control characters, which a page cannot hold, as the signs that stand for them."""
    return "".join(
        chr(0x2400 + ord(c))
        if ord(c) < 0x20 and c not in "\n\t"
        else "\N{SYMBOL FOR DELETE}"
        if ord(c) == 0x7F
        else c
        for c in text
    )
