"""`es2 list`: what there is to choose from, es2's own and what installed packages bring."""

from __future__ import annotations

import json as jsonlib
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from es2.attacks import ATTACKS, Attack
from es2.config import make_attacks
from es2.judges import JUDGES


def listed(kind: Literal["attacks", "judges"], json: bool = False) -> None:
    """Names attacks with what each touches and its settings, or judges with what each needs.

    Args:
        kind: what to list.
        json: print JSON on standard output, and nothing else.
    """
    if kind == "judges":
        _judges(json)
        return
    found = make_attacks({name: {} for name in sorted(ATTACKS)})
    if json:
        print(jsonlib.dumps([_record(attack) for attack in found]))
        return
    table = Table("attack", "touches", "what it does", "settings", box=None, pad_edge=False)
    for attack in found:
        lines = "\n".join(f"{name}={value}" for name, value in vars(attack).items())
        table.add_row(attack.name, attack.threat, _what(attack), lines)
    Console().print(table)


def _record(attack: Attack) -> dict[str, object]:
    settings = {name: str(value) for name, value in vars(attack).items()}
    return {
        "name": attack.name,
        "threat": attack.threat,
        "what": _what(attack),
        "settings": settings,
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
    Console().print(table)


def _what(attack: Attack) -> str:
    return _first(type(attack))


def _first(of: type) -> str:
    """The first line of a class's docstring."""
    return (of.__doc__ or "").strip().partition("\n")[0]


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(listed, args=argv, prog="es2 list", config=(tyro.conf.PositionalRequiredArgs,))
