"""Every attack on one model with a small, stated budget: can the suite break a model at all?

Launch: python benchmarks/attack_suite.py [--model smollm2-aligned] [--limit 24] [--only NAME ...]

Prints a Markdown table, one row an attack, as each is done.
"""

from __future__ import annotations

import argparse
import time

import es2
from es2.attacks import (
    AdapterStrip,
    Attack,
    AutoDan,
    BestOfN,
    Direct,
    Gcg,
    Prefill,
    RefusalAblation,
    RepE,
    Scav,
    SoftPrompt,
)
from es2.models.loading import ChatModel
from es2.results.rates import Rate

SUITE: list[tuple[Attack, str, int | None]] = [
    (Direct(), "defaults", None),
    (Prefill(), "defaults", None),
    (Scav(), "defaults", None),
    (RepE(), "defaults", None),
    (RefusalAblation(), "defaults", None),
    (BestOfN(tries=8), "8 tries", None),
    (SoftPrompt(steps=60, checkpoints=3), "60 steps of 100", 12),
    (Gcg(steps=40, width=32, merge=8), "40 steps of 250, width 32 of 512, merge 8", 4),
    (AutoDan(steps=10, population=48), "10 steps of 100, 48 texts of 256", 4),
]
"""The attack, what was left of its defaults, and how many prompts where fewer than for the others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-aligned")
    parser.add_argument("--base", help="the undefended model, where the model is a defended one")
    parser.add_argument("--limit", type=int, default=24, help="test prompts, spread evenly")
    parser.add_argument("--only", nargs="+", help="names of attacks")
    options = parser.parse_args()

    chat = es2.load(options.model)
    base: ChatModel | None = es2.load(options.base) if options.base else None
    suite = SUITE + ([(AdapterStrip(), "defaults", None)] if base else [])
    print(
        "| attack | budget | prompts | keyword DSR | judged DSR | best for each | setting | min |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for attack, budget, few in suite:
        if options.only and attack.name not in options.only:
            continue
        prompts = es2.load_prompts("harmful:test", limit=min(few or options.limit, options.limit))
        started = time.perf_counter()
        found = es2.attack(chat, attack, prompts, base=base)
        minutes = (time.perf_counter() - started) / 60
        cells = [attack.name, budget, len(prompts), share(found.dsr.keyword)]
        cells += [share(found.dsr.judged)]
        cells += [share(found.any_setting), found.setting, f"{minutes:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def share(rate: Rate) -> str:
    """In per cent, with its interval."""
    return f"{100 * rate.rate:.0f} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"


if __name__ == "__main__":
    main()
