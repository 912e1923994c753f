"""One recipe over several seeds: what holds, and what was luck.

Launch: python benchmarks/seeds.py recipes/demo.yaml --seeds 0 1 2

Each seed's run goes to runs/NAME (the recipe's own seed) or runs/NAME-SEED, is made or gone on with
where it is not whole, and gives one column of the table that docs/results.md shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from es2.config import load_recipe
from es2.pipeline.run import run
from es2.results.rates import Rate
from es2.results.schema import DefenceResult, Dsr
from es2.results.store import read_json, read_results

Cell = Callable[[DefenceResult], str]


def share(rate: Rate | None) -> str:
    """In per cent, with its interval."""
    if rate is None:
        return "-"
    return f"{rate.rate:.0%} ({rate.low:.0%}-{rate.high:.0%})".replace("%", "")


def published(of: DefenceResult) -> Dsr:
    """SCAV's at the published settings."""
    found = of.attacks["scav"].published
    assert found is not None, "the recipe leaves the published P0 out"
    return found.dsr


ROWS: dict[str, Cell] = {
    "SCAV, published P0 (worse): keyword DSR": lambda of: share(published(of).keyword),
    "SCAV, published P0 (worse): judged DSR": lambda of: share(published(of).judged),
    "SCAV, attacker's best P0: keyword DSR": lambda of: share(of.attacks["scav"].dsr.keyword),
    "SCAV, attacker's best P0: judged DSR": lambda of: share(of.attacks["scav"].dsr.judged),
    "direct: keyword DSR": lambda of: share(of.attacks["direct"].dsr.keyword),
    "direct: incoherent": lambda of: f"{100 * of.attacks['direct'].verdicts['incoherent']:.0f}",
    "harmless refused": lambda of: share(of.cost.over_refusal),
    "harmless incoherent": lambda of: share(of.cost.incoherent),
    "borderline refused": lambda of: share(of.cost.borderline_refusal),
    "held-out KL, nats": lambda of: f"{of.cost.kl or 0.0:.3f}",
    "perplexity ratio": lambda of: f"{of.cost.perplexity_ratio or 1.0:.3f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()

    recipe = load_recipe(options.recipe)
    folders = []
    for seed in options.seeds:
        name = recipe.name if seed == recipe.seed else f"{recipe.name}-{seed}"
        folders.append(run(replace(recipe, seed=seed), Path("runs") / name, resume=True))
    results = [read_results(folder).defences for folder in folders]

    columns = ["base", *(f"es2, seed {seed}" for seed in options.seeds)]
    print(f"| % (95 % interval) | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for title, cell in ROWS.items():
        cells = [cell(results[0]["base"]), *(cell(found["es2"]) for found in results)]
        print(f"| {title} | {' | '.join(cells)} |")
    records = [read_json(folder / "run.json") for folder in folders]
    stages = [record["stages"].values() for record in records]
    minutes = [sum(stage["seconds"] for stage in found) / 60 for found in stages]
    peaks = [max(stage["peak_memory_mb"] for stage in found) / 1000 for found in stages]
    print(f"| step kept | | {' | '.join(str(record['best_step']) for record in records)} |")
    print(f"| minutes | | {' | '.join(f'{m:.1f}' for m in minutes)} |")
    print(f"| peak memory, GB | | {' | '.join(f'{p:.1f}' for p in peaks)} |")


if __name__ == "__main__":
    main()
