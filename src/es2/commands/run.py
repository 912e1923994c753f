"""`es2 run`: a recipe, from the model to the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from es2.config import load_recipe
from es2.pipeline.run import run as run_recipe
from es2.pipeline.show import show


def run(
    recipe: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    force: bool = False,
    json: bool = False,
) -> None:
    """Runs a recipe and prints its table and the report's path.

    Args:
        recipe: a YAML file; those shipped are in recipes/.
        out: the run's folder; default runs/NAME.
        resume: go on with a run that was interrupted; what is done is not done again.
        seed: instead of the recipe's.
        force: measure on test prompts that are fitted on too; the results say so.
        json: print results.json on standard output, and nothing else.
    """
    loaded = load_recipe(recipe)
    loaded = loaded if seed is None else replace(loaded, seed=seed)
    show(run_recipe(loaded, out, resume=resume, force=force), json)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(run, args=argv, prog="es2 run")
