"""`es2 harden`: the one command that a user with a model of their own needs."""

from __future__ import annotations

from pathlib import Path

import tyro

from es2.commands.options import Dtype
from es2.config import Data, Recipe
from es2.defences.es2 import Es2
from es2.defences.trainer import TrainSettings
from es2.pipeline.experiment import Experiment, load_all
from es2.pipeline.folder import RunFolder
from es2.pipeline.harden import Guard
from es2.pipeline.run import hardening
from es2.separation.layers import parse_layers


def harden(
    model: str,
    out: Path,
    layers: str | None = None,
    seed: int = 0,
    resume: bool = False,
    paper: bool = False,
    dtype: Dtype = "auto",
    data: Data = Data(),
    loss: Es2 = Es2(),
    train: TrainSettings = TrainSettings(),
    guard: Guard = Guard(),
) -> None:
    """Finds the critical layers, separates, validates and saves a LoRA adapter.

    Args:
        model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
        out: folder for adapter/, layers.json, metrics.jsonl, run.json and checkpoints/.
        layers: your own critical layers, such as 15,30; default: found.
        seed: of the adapter, the batches and the cut of your files into splits.
        resume: go on with what is in --out.
        paper: the published loss instead of --loss.
        dtype: of the weights: auto, float32, bfloat16 or float16.
        data: prompts.
        loss: the terms of the loss.
        train: the training loop.
        guard: when validation calls the model broken.
    """
    given = None if layers is None else parse_layers(layers)
    recipe = Recipe(
        model=model,
        name=out.name,
        seed=seed,
        dtype=dtype,
        layers=given,
        data=data,
        es2=Es2.paper() if paper else loss,
        train=train,
        guard=guard,
        attacks={},
    )
    prompts = load_all(recipe)
    experiment = Experiment(recipe, RunFolder.open(out, recipe, resume), prompts)
    hardening(experiment)
    print(experiment.folder.path / ("adapter" if train.rank else "model"))


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(harden, args=argv, prog="es2 harden")
