"""Which judges there are, and how one is made from the name that a user gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from es2.errors import Es2Error
from es2.judges.base import Judge
from es2.judges.coherence import CalibratedJudge
from es2.judges.endpoint import Client
from es2.registry import Registry


@dataclass(frozen=True, eq=False)
class Means:
    """What judges may be made with; each takes what it needs.

    Attributes:
        coherence: loads the undefended model and its limits, for es2's own rules.
        client: asks a chat endpoint; None where the user named none.
        dtype: of classifiers' weights; None for the device's default.
        device: that classifiers run on; None for the accelerator if there is one.
    """

    coherence: Callable[[], CalibratedJudge] | None = None
    client: Client | None = None
    dtype: torch.dtype | None = None
    device: str | None = None


JUDGES: Registry[type[Any]] = Registry("judge", "es2.judges")
"""All judges by name: es2's own, and those of other packages, see `Registry`.

A class fits `Judge` and has, besides, `needs` (in words, for `es2 list judges`) and a class method
`of(argument, means)` that makes one; `argument` is what stands behind a colon in the name that the user
gave, as in `keywords:gcg`, and is empty where there is none.
"""


def make(given: str, means: Means) -> Judge:
    """The judge of that name, with any argument behind a colon.

    Raises:
        Es2Error: if there is none, its argument is wrong, or what it needs was not given.
    """
    name, _, argument = given.partition(":")
    return JUDGES.find(name.replace("-", "_")).of(argument, means)


def make_all(given: Sequence[str], means: Means) -> list[Judge]:
    """Every judge that a user named.

    Raises:
        Es2Error: as `make`, or if two are called the same.
    """
    made = [make(name, means) for name in given]
    names = [judge.name for judge in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Es2Error(f"two judges are called {twice[0]!r}; name each once")
    return made


def takes_none(name: str, argument: str) -> None:
    """Raises an Es2Error where a judge that takes no argument was given one."""
    if argument:
        raise Es2Error(f"judge {name!r} takes nothing behind a colon, but got {argument!r}")
