"""`es2 list`: what there is to choose from, es2's own and what installed packages bring."""

from __future__ import annotations

import json as jsonlib
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from es2.attacks import ATTACKS, Attack
from es2.config import make_attacks


def listed(kind: Literal["attacks"], json: bool = False) -> None:
    """Names attacks, what each touches, and its settings with their defaults.

    Args:
        kind: what to list.
        json: print JSON on standard output, and nothing else.
    """
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


def _what(attack: Attack) -> str:
    return (type(attack).__doc__ or "").strip().partition("\n")[0]


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(listed, args=argv, prog="es2 list", config=(tyro.conf.PositionalRequiredArgs,))
