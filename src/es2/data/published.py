"""How large the public sets are: what a plan is made from where they cannot be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from es2.data.sources import Prompt

SIZES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "advbench": (0, 520),
        "harmbench": (0, 200),
        "jailbreakbench": (0, 100),
        "strongreject": (0, 313),
        "xstest": (250, 200),
        "or-bench-80k": (80_359, 0),
        "or-bench-hard-1k": (1_319, 0),
        "or-bench-toxic": (0, 655),
        "alpaca": (31_323, 0),
    }
)
"""Safe and unsafe prompts of each set's main split, as its authors give them; of Alpaca those without
an input."""

WORDS = 13
"""Of a stand-in, about 80 characters: these sets' prompts are short."""


def stand_ins(name: str) -> list[Prompt]:
    """As many prompts as a public set has, of no content, safe ones first."""
    safe, unsafe = SIZES[name]
    text = " ".join(["words"] * WORDS)
    return [
        Prompt(text, place >= safe, None, "", False, f"{name}-{place:05d}", name)
        for place in range(safe + unsafe)
    ]
