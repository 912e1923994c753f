"""Attacks: what a defence is measured against. One file each, named by the method."""

from es2.attacks.base import Attack, Attempt, Victim
from es2.attacks.direct import Direct
from es2.attacks.scav import Scav

ATTACKS: dict[str, type[Attack]] = {"direct": Direct, "scav": Scav}

__all__ = ["ATTACKS", "Attack", "Attempt", "Direct", "Scav", "Victim"]
