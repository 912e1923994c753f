"""`es2 list`: what there is to choose from, es2's own and what installed packages bring."""

from __future__ import annotations

import json as jsonlib
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from es2.attacks import ATTACKS
from es2.config import make_attacks


def listed(kind: Literal["attacks"], json: bool = False) -> None:
    """Names attacks, what each touches, and its settings with their defaults.

    Args:
        kind: what to list.
        json: print JSON on standard output, and nothing else.
    """
    found = [
        {
            "name": attack.name,
            "threat": attack.threat,
            "what": (type(attack).__doc__ or "").strip().splitlines()[0],
            "settings": {name: str(value) for name, value in vars(attack).items()},
        }
        for attack in make_attacks({name: {} for name in sorted(ATTACKS)})
    ]
    if json:
        print(jsonlib.dumps(found))
        return
    table = Table("attack", "touches", "what it does", "settings", box=None, pad_edge=False)
    for entry in found:
        settings = entry["settings"]
        assert isinstance(settings, dict)
        lines = "\n".join(f"{name}={value}" for name, value in settings.items())
        table.add_row(str(entry["name"]), str(entry["threat"]), str(entry["what"]), lines)
    Console().print(table)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(listed, args=argv, prog="es2 list", config=(tyro.conf.PositionalRequiredArgs,))
