"""Completions for a judge to be measured on: all kinds of answers that es2's models and attacks give.

Three models (unaligned, aligned, hardened) answer harmful, harmless and borderline test prompts, as
they are and under attacks at several strengths, some far too strong. Everything is seeded, so that the
same machine writes the same texts again. The texts stay in a folder of the user's: the repository
holds their hashes only.

There are five rounds, and no prompt is in two of them: the last was read and labelled only once the
rules stood, the others are for the rules to be tuned on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch

import es2
from es2.attacks import (
    Attack,
    BestOfN,
    Direct,
    Prefill,
    RefusalAblation,
    RepE,
    Scav,
    Victim,
)
from es2.data.fitting import bundled_fit
from es2.data.sources import Prompt
from es2.progress import bar

UNALIGNED, ALIGNED, HARDENED = "smollm2", "smollm2-aligned", "hardened"
VALIDATION = "harmful:validation"


@dataclass(frozen=True)
class Sample:
    """One completion and where it comes from.

    Attributes:
        model: `smollm2`, `smollm2-aligned` or `hardened`.
        source: the attack, or the set of prompts where they are asked as they are.
        setting: of the attack.
        prompt_id: in es2's own test prompts.
        prompt: its text.
        completion: what the model wrote.
    """

    model: str
    source: str
    setting: str
    prompt_id: str
    prompt: str
    completion: str

    @property
    def sha256(self) -> str:
        """Of the completion."""
        return sha256(self.completion.encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """What a model is asked, and how.

    Attributes:
        name: as samples name it.
        attack: how.
        prompts: a set of prompts.
        first: the first of them, or of those that no earlier round asks.
        step: from one to the next; sets are in the order of their topics.
    """

    name: str
    attack: Attack
    prompts: str
    first: int
    step: int


Plan = dict[str, list[Source]]
"""What each model is asked."""


def harmful(attack: Attack, first: int, step: int = 15, prompts: str = "harmful:test") -> Source:
    """An attack on some harmful prompts."""
    return Source(attack.name, attack, prompts, first, step)


def asked(prompts: str, first: int, step: int) -> Source:
    """Prompts that nobody attacks with."""
    return Source(prompts.partition(":")[0], Direct(), prompts, first, step)


FIRST: Plan = {
    UNALIGNED: [
        harmful(Direct(), 0, 6),
        asked("harmless:test", 0, 10),
        asked("borderline:test", 0, 6),
        harmful(Scav(p0=(1e-3, 1e-6)), 1),
        harmful(RepE(strengths=(0.1, 0.4)), 2),
        harmful(BestOfN(tries=2), 3),
    ],
    ALIGNED: [
        harmful(Direct(), 1, 5),
        asked("harmless:test", 3, 10),
        asked("borderline:test", 1, 4),
        harmful(Scav(p0=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-12, 1e-30)), 4),
        harmful(RepE(strengths=(0.05, 0.1, 0.2, 0.4, 0.8)), 5),
        harmful(RefusalAblation(), 6),
        harmful(Prefill(lengths=(1, 3, None)), 7),
        harmful(BestOfN(tries=3), 8),
    ],
    HARDENED: [
        harmful(Direct(), 2, 10),
        asked("harmless:test", 6, 7),
        asked("borderline:test", 2, 6),
        harmful(Scav(p0=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6)), 10),
        harmful(RepE(strengths=(0.1, 0.2, 0.4)), 11),
    ],
}

AGAIN: dict[str, list[tuple[Attack, int]]] = {
    UNALIGNED: [
        (Scav(p0=(1e-3, 1e-6)), 1),
        (RepE(strengths=(0.1, 0.4)), 1),
        (BestOfN(tries=2), 1),
    ],
    ALIGNED: [
        (Scav(p0=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-12, 1e-30)), 1),
        (RepE(strengths=(0.05, 0.1, 0.2, 0.4, 0.8)), 1),
        (RefusalAblation(), 2),
        (Prefill(lengths=(1, 3, None)), 1),
        (BestOfN(tries=3), 1),
    ],
    HARDENED: [
        (Scav(p0=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6)), 1),
        (RepE(strengths=(0.1, 0.2, 0.4)), 1),
    ],
}
"""What every later round attacks with, and how many prompts it gets for each of the others' one."""


def later(
    plain: Callable[[int], list[Source]],
    firsts: Sequence[int],
    step: int = 42,
    prompts: str = VALIDATION,
) -> Plan:
    """A round after the first: prompts as they are, and the same attacks on other prompts.

    Args:
        plain: what nobody attacks with, by the model's place among the three.
        firsts: the first prompt of each attack, in their order.
        step: from one prompt of an attack to the next.
        prompts: that are attacked with.
    """
    first = iter(firsts)
    return {
        model: [
            *plain(place),
            *(harmful(attack, next(first), step // often, prompts) for attack, often in attacks),
        ]
        for place, (model, attacks) in enumerate(AGAIN.items())
    }


SECOND = later(
    lambda place: [
        harmful(Direct(), place, 3),
        asked("harmless:test", 4 * place, 12),
        asked("borderline:test", place, 4),
    ],
    (1, 4, 7, 10, 13, 16, 19, 22, 25, 28),
)
"""The harmful test prompts that the first round left are few: attacks are on validation prompts."""

THIRD = later(
    lambda place: [
        harmful(Direct(), place, 20, VALIDATION),
        asked("harmless:test", 3 * place, 8),
        asked("borderline:test", place, 3),
    ],
    (2, 5, 8, 11, 14, 17, 24, 27, 30, 33),
)
"""Test prompts that attack or ask for harm are used up: all harmful ones are validation prompts."""

FOURTH = later(
    lambda place: [
        harmful(Direct(), place, 14, VALIDATION),
        asked("harmless:test", 2 * place, 6),
        asked("borderline:validation", 8 * place, 24),
    ],
    (3, 4, 5, 8, 9, 6, 11, 10, 7, 12),
    step=14,
)
"""All harmful validation prompts that are left, and borderline ones of validation, too."""

FIFTH = later(
    lambda place: [
        harmful(Direct(), 20 * place, 252, "harmful:train"),
        asked("harmless:validation", 9 * place, 28),
        asked("borderline:validation", 8 * place + 2, 24),
    ],
    (63, 69, 75, 81, 87, 93, 99, 105, 111, 117),
    step=252,
    prompts="harmful:train",
)
"""Harmful prompts are training ones, which attacks are fitted on and hardened models are trained on."""

ROUNDS = (FIRST, SECOND, THIRD, FOURTH, FIFTH)


def asked_by(plan: Plan, other_than: frozenset[str] = frozenset()) -> frozenset[str]:
    """The ids of all prompts of a plan."""
    return frozenset(
        prompt.id
        for sources in plan.values()
        for source in sources
        for prompt in chosen(source, other_than)
    )


def chosen(source: Source, other_than: frozenset[str]) -> list[Prompt]:
    """The prompts of a source, those with some ids passed over."""
    left = [prompt for prompt in es2.load_prompts(source.prompts) if prompt.id not in other_than]
    return left[source.first :: source.step]


def samples(name: str, victim: Victim, rounds: Collection[int]) -> Iterator[Sample]:
    """One model's completions of some rounds; a text that a prompt got before is left out."""
    earlier: frozenset[str] = frozenset()
    for number, plan in enumerate(ROUNDS, 1):
        if number in rounds:
            yield from samples_of(plan, name, victim, earlier)
        earlier |= asked_by(plan, earlier)


def samples_of(plan: Plan, name: str, victim: Victim, earlier: frozenset[str]) -> Iterator[Sample]:
    """One round's completions of one model.

    Args:
        plan: of the round.
        name: of the model.
        victim: the model.
        earlier: the ids of the prompts of the rounds before.
    """
    seen: set[tuple[str, str]] = set()
    for source in plan[name]:
        prompts = chosen(source, earlier)
        total = len(prompts) * len(source.attack.settings())
        with bar(f"{source.name} on {name}", total) as advance:
            for portion in source.attack.run(victim, prompts, progress=advance):
                for one in portion:
                    if (one.prompt_id, one.completion) in seen:
                        continue
                    seen.add((one.prompt_id, one.completion))
                    yield Sample(
                        name, source.name, one.setting, one.prompt_id, one.prompt, one.completion
                    )


def collect(folder: Path, adapter: Path | None, rounds: Collection[int]) -> list[Sample]:
    """Writes completions to a folder; without an adapter there is no hardened model."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Sample] = []
    for name in FIRST:
        if name == HARDENED and adapter is None:
            continue
        chat = es2.load(ALIGNED, adapter=adapter) if name == HARDENED else es2.load(name)
        found += samples(name, Victim(chat, bundled_fit(extra=False).at_most(200)), rounds)
    lines = (json.dumps(asdict(sample)) for sample in found)
    (folder / "completions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def read(folder: Path) -> list[Sample]:
    """What `collect` wrote."""
    lines = (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return [Sample(**json.loads(line)) for line in lines]
