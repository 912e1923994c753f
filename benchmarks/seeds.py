"""One recipe over several seeds: what holds, and what was luck.

Launch: python benchmarks/seeds.py recipes/demo.yaml --seeds 0 1 2

Each seed's run goes to runs/NAME (the recipe's own seed) or runs/NAME-SEED, is made or gone on with
where it is not whole, and gives one column of the table that docs/results.md shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from es2.config import load_recipe
from es2.pipeline.run import run
from es2.results.rates import Rate
from es2.results.schema import DefenceResult, Dsr
from es2.results.seeds import over_seeds
from es2.results.store import read_json, read_results

Measure = Callable[[DefenceResult], Rate | float | None]


def cell(value: Rate | float | None) -> str:
    """A rate in per cent with its interval, a number as it is."""
    if isinstance(value, Rate):
        return f"{value.rate:.0%} ({value.low:.0%}-{value.high:.0%})".replace("%", "")
    return "-" if value is None else f"{value:.3f}"


def spread(values: Sequence[Rate | float | None]) -> str:
    """The mean over training seeds, the lowest and the highest, and the standard deviation."""
    known = [v.rate if isinstance(v, Rate) else v for v in values if v is not None]
    if len(known) < 2:
        return "-"
    found, percent = over_seeds(known), any(isinstance(value, Rate) for value in values)
    digits, scale = (0, 100) if percent else (3, 1)
    mean, low, high = (f"{scale * v:.{digits}f}" for v in (found.mean, found.low, found.high))
    return f"{mean} ({low}-{high}), sd {scale * (found.deviation or 0):.{digits + 1}f}"


def published(of: DefenceResult) -> Dsr:
    """SCAV's at the published settings."""
    found = of.attacks["scav"].published
    assert found is not None, "the recipe leaves the published P0 out"
    return found.dsr


ROWS: dict[str, Measure] = {
    "SCAV, published P0 (worse): keyword DSR": lambda of: published(of).keyword,
    "SCAV, published P0 (worse): judged DSR": lambda of: published(of).judged,
    "SCAV, attacker's best P0: keyword DSR": lambda of: of.attacks["scav"].dsr.keyword,
    "SCAV, attacker's best P0: judged DSR": lambda of: of.attacks["scav"].dsr.judged,
    "direct: keyword DSR": lambda of: of.attacks["direct"].dsr.keyword,
    "direct: incoherent, share": lambda of: of.attacks["direct"].verdicts["incoherent"],
    "harmless refused": lambda of: of.cost.over_refusal,
    "harmless incoherent": lambda of: of.cost.incoherent,
    "borderline refused": lambda of: of.cost.borderline_refusal,
    "held-out KL, nats": lambda of: of.cost.kl,
    "perplexity ratio": lambda of: of.cost.perplexity_ratio,
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

    columns = ["base", *(f"es2, seed {seed}" for seed in options.seeds), "es2, over seeds"]
    print(f"| % (95 % interval) | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for title, measure in ROWS.items():
        values = [measure(found["es2"]) for found in results]
        cells = [cell(measure(results[0]["base"])), *map(cell, values), spread(values)]
        print(f"| {title} | {' | '.join(cells)} |")
    records = [read_json(folder / "run.json") for folder in folders]
    stages = [record["stages"].values() for record in records]
    minutes = [sum(stage["seconds"] for stage in found) / 60 for found in stages]
    peaks = [max(stage["peak_memory_mb"] for stage in found) / 1000 for found in stages]
    print(f"| step kept | | {' | '.join(str(record['best_step']) for record in records)} | |")
    print(f"| minutes | | {' | '.join(f'{m:.1f}' for m in minutes)} | |")
    print(f"| peak memory, GB | | {' | '.join(f'{p:.1f}' for p in peaks)} | |")


if __name__ == "__main__":
    main()
