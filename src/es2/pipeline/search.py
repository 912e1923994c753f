"""`es2 harden --tune`: a study of a defence's settings on a recipe's model and validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from es2.config import Recipe, make_defence
from es2.defences import Defence
from es2.defences.base import searched_terms
from es2.errors import Es2Error
from es2.models.loading import load
from es2.pipeline.alike import as_cut
from es2.pipeline.experiment import Experiment, Prompts
from es2.pipeline.folder import RunFolder
from es2.pipeline.trial import Bench, Trial, bench
from es2.pipeline.tune import STUDY, Tuning, best, pick, search
from es2.progress import output
from es2.separation.layers import choose, given, survey


def tuned(recipe: Recipe, prompts: Prompts, out: Path, trials: int, resume: bool) -> list[Trial]:
    """Runs what is left of the study in `OUT/tune`; its finished trials.

    Raises:
        Es2Error: if the folder holds a study that is not to be gone on with, or of something else, or
            there is to be none.
    """
    if trials < 1:
        raise Es2Error(f"--tune {trials}: give 1 trial or more")
    defence = make_defence(recipe.defence)
    folder = out / "tune"
    if (folder / STUDY).is_file() and not resume:
        raise Es2Error(f"{folder} holds a study already; add --resume or give another --out")
    # The seeds that a comparison trains with share the first one's study, of the same splits.
    study = RunFolder.open(folder, replace(as_cut(recipe), name="tune", seed=0), resume=True)
    study.note(trials=trials)
    tuning = Tuning(trials=trials, seed=recipe.seed)

    @cache  # a study that is done needs no model
    def shared() -> Bench:
        return _bench(recipe, prompts, defence, tuning, study)

    return search(
        lambda *drawn: shared().run(*drawn),
        searched_terms(defence),
        {**vars(defence), "lr": recipe.train.lr},
        tuning,
        folder,
    )


def _bench(
    recipe: Recipe, prompts: Prompts, defence: Defence, tuning: Tuning, study: RunFolder
) -> Bench:
    """What all trials of a study share."""
    experiment = Experiment(recipe, study, prompts)
    base = experiment.base
    chosen = (
        given(recipe.layers, base.depth)
        if recipe.layers
        else choose(survey(experiment.base_states))
    )
    return bench(
        base,
        load(recipe.model, dtype=experiment.dtype, device_map=recipe.device_map),
        prompts.fit,
        prompts.probe_fit,
        prompts.harmful.validation,
        chosen.layers,
        defence,
        replace(recipe.train, seed=recipe.seed),
        recipe.guard,
        experiment.judge.limits,
        tuning.trying,
        study.path,
    )


def picked(trials: Sequence[Trial], number: int | None) -> Trial:
    """The trial that the user names, or the rule picks.

    Raises:
        Es2Error: if there is no finished trial of that number.
    """
    if number is None:
        return pick(trials, Tuning())
    known = {trial.number: trial for trial in trials}
    if number not in known:
        raise Es2Error(f"--pick {number}: no such finished trial; there are {sorted(known)}")
    return known[number]


def with_trial(recipe: Recipe, trial: Trial) -> Recipe:
    """The recipe with a trial's settings."""
    ((name, values),) = recipe.defence.items()
    training: dict[str, Any] = dict(trial.training)
    return replace(
        recipe,
        defence={name: {**values, **trial.terms}},
        train=replace(recipe.train, **training),
    )


def frontier(trials: Sequence[Trial]) -> None:
    """Prints the trials that none beats in everything."""
    rule = Tuning()
    table = Table(
        title="Trials that no other beats, on validation prompts",
        caption=f"picked: the safest with refusals up by {100 * rule.most_refused:.0f} points at most "
        f"and KL at most {rule.most_kl:g}; --pick TRIAL chooses another",
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for head in ("trial", "judged DSR", "worst attack", "KL", "refusals", "settings"):
        table.add_column(head)
    own = pick(trials, rule) if trials else None
    for one in best(trials):
        settings = " ".join(f"{k}={v:.3g}" for k, v in {**one.terms, **one.training}.items())
        table.add_row(
            f"{one.number}{' *' if one == own else ''}",
            f"{100 * one.safety:.0f} %",
            one.worst,
            f"{one.kl:.3f}",
            f"{100 * one.refused:+.1f} points",
            settings,
        )
    output().print(table)
