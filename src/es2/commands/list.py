"""`es2 list`: what there is to choose from, es2's own and what installed packages bring."""

from __future__ import annotations

import json as jsonlib
from typing import Literal

import tyro
from rich.table import Table

from es2.attacks import ATTACKS, Attack
from es2.config import make_attacks, make_defence
from es2.defences import DEFENCES, Defence
from es2.judges import JUDGES
from es2.progress import output


def listed(kind: Literal["attacks", "defences", "judges"], json: bool = False) -> None:
    """Names attacks with what each touches, defences with their source, judges with what each needs.

    Args:
        kind: what to list.
        json: print JSON on standard output, and nothing else.
    """
    if kind == "judges":
        _judges(json)
        return
    if kind == "defences":
        _defences(json)
        return
    found = make_attacks({name: {} for name in sorted(ATTACKS)})
    if json:
        print(jsonlib.dumps([_record(attack) for attack in found]))
        return
    table = Table("attack", "touches", "what it does", "settings", box=None, pad_edge=False)
    for attack in found:
        lines = "\n".join(f"{name}={value}" for name, value in vars(attack).items())
        table.add_row(attack.name, attack.threat, _what(attack), lines)
    output().print(table)


def _record(attack: Attack) -> dict[str, object]:
    return {
        "name": attack.name,
        "threat": attack.threat,
        "what": _what(attack),
        "settings": _settings(attack),
    }


def _settings(of: object) -> dict[str, str]:
    return {name: str(value) for name, value in vars(of).items()}


def _defences(json: bool) -> None:
    found = [make_defence({name: {}}) for name in sorted(DEFENCES)]
    if json:
        print(jsonlib.dumps([_defence(one) for one in found]))
        return
    table = Table("defence", "what it does", "source", "settings", box=None, pad_edge=False)
    for one in found:
        lines = "\n".join(f"{name}={value}" for name, value in _settings(one).items())
        table.add_row(one.name, _first(type(one)), one.source, lines)
    output().print(table)


def _defence(one: Defence) -> dict[str, object]:
    return {
        "name": one.name,
        "source": one.source,
        "what": _first(type(one)),
        "settings": _settings(one),
        "train": _settings(one.published),
    }


def _judges(json: bool) -> None:
    rows = [(name, getattr(JUDGES[name], "needs", ""), JUDGES[name]) for name in sorted(JUDGES)]
    if json:
        named = [{"name": name, "needs": needs, "what": _first(of)} for name, needs, of in rows]
        print(jsonlib.dumps(named))
        return
    table = Table("judge", "needs", "what it does", box=None, pad_edge=False)
    for name, needs, of in rows:
        table.add_row(name, needs, _first(of))
    output().print(table)


def _what(attack: Attack) -> str:
    return _first(type(attack))


def _first(of: type) -> str:
    """The first line of a class's docstring."""
    return (of.__doc__ or "").strip().partition("\n")[0]


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(listed, args=argv, prog="es2 list", config=(tyro.conf.PositionalRequiredArgs,))
