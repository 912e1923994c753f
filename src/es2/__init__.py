"""es2: embedding space separation for chat models, and the attacks to test it with.

The public names, imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from es2.attacks import (
        Attack as Attack,
    )
    from es2.attacks import (
        Attempt as Attempt,
    )
    from es2.attacks import (
        Direct as Direct,
    )
    from es2.attacks import (
        Scav as Scav,
    )
    from es2.attacks import (
        Victim as Victim,
    )
    from es2.data.fitting import FitPrompts as FitPrompts
    from es2.data.fitting import bundled_fit as bundled_fit
    from es2.data.sources import Prompt as Prompt
    from es2.data.sources import load_prompts as load_prompts
    from es2.defences import Defence as Defence
    from es2.defences import Es2 as Es2
    from es2.defences import Es2Paper as Es2Paper
    from es2.defences.trainer import TrainSettings as TrainSettings
    from es2.errors import Es2Error as Es2Error
    from es2.judges.coherence import judge as judge
    from es2.models.loading import ChatModel as ChatModel
    from es2.models.loading import load as load
    from es2.pipeline.attack import attack as attack
    from es2.pipeline.evaluate import Evaluation as Evaluation
    from es2.pipeline.evaluate import evaluate as evaluate
    from es2.pipeline.experiment import reopen as reopen
    from es2.pipeline.harden import Guard as Guard
    from es2.pipeline.harden import Hardened as Hardened
    from es2.pipeline.harden import harden as harden
    from es2.pipeline.run import run as run

_HOMES = {
    "Attack": "es2.attacks",
    "Attempt": "es2.attacks",
    "ChatModel": "es2.models.loading",
    "Direct": "es2.attacks",
    "Defence": "es2.defences",
    "Es2": "es2.defences",
    "Es2Error": "es2.errors",
    "Es2Paper": "es2.defences",
    "Evaluation": "es2.pipeline.evaluate",
    "FitPrompts": "es2.data.fitting",
    "Guard": "es2.pipeline.harden",
    "Hardened": "es2.pipeline.harden",
    "Prompt": "es2.data.sources",
    "Scav": "es2.attacks",
    "TrainSettings": "es2.defences.trainer",
    "Victim": "es2.attacks",
    "attack": "es2.pipeline.attack",
    "bundled_fit": "es2.data.fitting",
    "evaluate": "es2.pipeline.evaluate",
    "harden": "es2.pipeline.harden",
    "judge": "es2.judges.coherence",
    "load": "es2.models.loading",
    "load_prompts": "es2.data.sources",
    "reopen": "es2.pipeline.experiment",
    "run": "es2.pipeline.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name from where it lives; torch is not paid for before it is needed."""
    if name not in _HOMES:
        raise AttributeError(f"module 'es2' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
