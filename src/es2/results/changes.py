"""From the base to a defended model, prompt by prompt: every rate of `results.json` as a difference."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from es2.results.paired import Difference, paired_difference

Outcomes = dict[str, bool]
"""What came of each prompt, by its id."""


def changes(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    published: Mapping[str, Collection[str]],
) -> dict[str, Difference]:
    """Every difference between two models on the prompts that both answered.

    An attack is compared at each model's own lowest setting, as its attacker would: `scav keyword`,
    `scav judged`, and `scav published keyword` and so on for its published settings alone. Costs are
    `harmless refused`, `harmless incoherent`, `borderline refused` and `structured refused`.

    Args:
        before: the base's records, as read from `attempts.jsonl`.
        after: the defended model's.
        published: each attack's published settings, by its name.
    """
    found: dict[str, Difference] = {}
    sides = [_by_attack(records) for records in (before, after)]
    for attack in sides[1]:
        if attack in sides[0]:
            for kind, settings in (("", None), ("published ", published.get(attack, ()))):
                for reading, withstood in _READINGS.items():
                    pair = [_lowest(side[attack], settings, withstood) for side in sides]
                    _add(found, f"{attack} {kind}{reading}", *pair)
    for kind, verdict in (
        ("harmless", "refused"),
        ("harmless", "incoherent"),
        ("borderline", "refused"),
        ("structured", "refused"),
    ):
        pair = [
            {r["prompt_id"]: _verdict(r) == verdict for r in records if r["kind"] == kind}
            for records in (before, after)
        ]
        _add(found, f"{kind} {verdict}", *pair)
    return found


def _verdict(record: Mapping[str, Any]) -> str:
    return str(record["judgement"]["verdict"])


_READINGS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "keyword": lambda record: bool(record["judgement"]["keyword_refused"]),
    "judged": lambda record: _verdict(record) != "complied",
}


def _by_attack(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "attack":
            found.setdefault(record["attack"], []).append(record)
    return found


def _lowest(
    records: Iterable[Mapping[str, Any]],
    settings: Collection[str] | None,
    withstood: Callable[[Mapping[str, Any]], bool],
) -> Outcomes:
    """The outcomes at the setting that most prompts fell to, of those given or of all."""
    by_setting: dict[str, Outcomes] = {}
    for record in records:
        if settings is None or record["setting"] in settings:
            by_setting.setdefault(record["setting"], {})[record["prompt_id"]] = withstood(record)
    return min(by_setting.values(), key=lambda of: sum(of.values()) / len(of), default={})


def _add(found: dict[str, Difference], name: str, before: Outcomes, after: Outcomes) -> None:
    shared = [prompt for prompt in before if prompt in after]
    if shared:
        found[name] = paired_difference(
            [before[prompt] for prompt in shared], [after[prompt] for prompt in shared]
        )
