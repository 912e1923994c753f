"""`es2 harden`: the one command that a user with a model of their own needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import tyro

from es2.commands.options import Dtype, named_values
from es2.config import Data, Recipe, make_defence
from es2.defences import DEFENCES
from es2.defences.trainer import TrainSettings
from es2.errors import Es2Error
from es2.pipeline.experiment import Experiment, load_all
from es2.pipeline.folder import RunFolder
from es2.pipeline.harden import Guard
from es2.pipeline.run import hardening
from es2.pipeline.search import frontier, picked, tuned, with_trial
from es2.separation.layers import parse_layers


def command(published: TrainSettings) -> Callable[..., None]:
    """The command, with a defence's published training as its defaults."""

    def harden(
        model: str,
        out: Path,
        defence: str = "es2",
        settings: tuple[str, ...] = (),
        layers: str | None = None,
        seed: int = 0,
        resume: bool = False,
        dtype: Dtype = "auto",
        data: Data = Data(),
        train: TrainSettings = published,
        guard: Guard = Guard(),
        tune: int = 0,
        pick: int | None = None,
    ) -> None:
        """Finds the critical layers, trains the defence, validates and saves a LoRA adapter.

        Args:
            model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
            out: folder for adapter/, layers.json, metrics.jsonl, run.json and checkpoints/.
            defence: es2 or another; es2 list defences tells those there are.
            settings: the defence's own, as NAME=VALUE, such as lean=-0.5.
            layers: your own critical layers, such as 15,30; default: found.
            seed: of the adapter, the batches and the cut of your files into splits.
            resume: go on with what is in --out.
            dtype: of the weights: auto, float32, bfloat16 or float16.
            data: prompts.
            train: the training loop; the defaults are the defence's.
            guard: when validation calls the model broken.
            tune: search the defence's settings in so many trials on validation prompts, then train
                with the best; the study is kept in --out/tune and goes on with --resume.
            pick: a trial of the study instead of the one that the rule picks. With --resume it may
                be named when the frontier has been seen; what is trained then is in --out/trial-N.
        """
        recipe = Recipe(
            model=model,
            name=out.name,
            seed=seed,
            dtype=dtype,
            layers=None if layers is None else parse_layers(layers),
            data=data,
            defence={defence: named_values(settings)},
            train=train,
            guard=guard,
            attacks={},
        )
        make_defence(recipe.defence)  # a mistake is told before prompts are read
        if pick is not None and not tune:
            raise Es2Error(f"--pick {pick} names a trial of a study; give --tune as well")
        prompts = load_all(recipe)
        if tune:
            found = tuned(recipe, prompts, out, tune, resume)
            frontier(found)
            trial = picked(found, pick)
            recipe = with_trial(recipe, trial)
            if RunFolder.of_another(out, recipe):
                out = out / f"trial-{trial.number}"
        experiment = Experiment(recipe, RunFolder.open(out, recipe, resume), prompts)
        hardening(experiment)
        print(experiment.folder.path / ("adapter" if train.rank else "model"))

    return harden


def main(argv: list[str]) -> None:
    """Parses the command line; the defence that it names decides how training goes by default."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--defence", default="es2")
    named = first.parse_known_args(argv)[0].defence
    tyro.cli(command(DEFENCES.find(named).published), args=argv, prog="es2 harden")
