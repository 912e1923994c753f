"""Attacks: what a defence is measured against. One file each, named by the method."""

from es2.attacks.adapter_strip import AdapterStrip
from es2.attacks.autodan import AutoDan
from es2.attacks.base import ATTACKS, Attack, Attempt, Victim
from es2.attacks.best_of_n import BestOfN
from es2.attacks.budget import Budget
from es2.attacks.direct import Direct
from es2.attacks.gcg import Gcg
from es2.attacks.prefill import Prefill
from es2.attacks.push import Push
from es2.attacks.refusal_ablation import RefusalAblation
from es2.attacks.repe import RepE
from es2.attacks.scav import Scav
from es2.attacks.soft_prompt import SoftPrompt

__all__ = [
    "ATTACKS",
    "AdapterStrip",
    "Attack",
    "Attempt",
    "AutoDan",
    "BestOfN",
    "Budget",
    "Direct",
    "Gcg",
    "Prefill",
    "Push",
    "RefusalAblation",
    "RepE",
    "Scav",
    "SoftPrompt",
    "Victim",
]
