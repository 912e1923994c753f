"""`es2 run`: a recipe, from the model to the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from es2.config import load_recipe
from es2.pipeline.plan import plan
from es2.pipeline.plan_table import show_plan
from es2.pipeline.run import run as run_recipe
from es2.pipeline.show import show


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    force: bool = False,
    json: bool = False,
    device_map: Literal["auto"] | None = None,
    dry_run: bool = False,
    gpu: str = "h100",
    devices: int = 1,
) -> None:
    """Runs a recipe and prints its table and the report's path.

    Args:
        recipe: a YAML file; those shipped are in recipes/.
        out: the run's folder; default runs/NAME.
        resume: go on with a run that was interrupted; what is done is not done again.
        seed: instead of the recipe's.
        force: measure on test prompts that are fitted on too; the results say so.
        json: print results.json, or the plan of a dry run, on standard output, and nothing else.
        device_map: auto spreads each model's layers over all accelerators.
        dry_run: only say what it would take; no weights are loaded and nothing is written.
        gpu: that a dry run's hours are of: a100-40gb, a100-80gb, h100, h200, l40s or rtx4090.
        devices: how many of them.
    """
    loaded = load_recipe(recipe)
    loaded = loaded if seed is None else replace(loaded, seed=seed)
    if device_map is not None:
        loaded = replace(loaded, device_map=device_map)
    if dry_run:
        show_plan(plan(loaded, gpu, devices), json)
        return
    show(run_recipe(loaded, out, resume=resume, force=force), json)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(run, args=argv, prog="es2 run")
