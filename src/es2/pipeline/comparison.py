"""A comparison's settings: several defences of one model, on the same data, attacks and seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from es2.config import (
    Recipe,
    check_least,
    checked,
    make_attacks,
    make_defence,
    mapping,
    read_yaml,
)
from es2.defences import DEFENCES
from es2.defences.trainer import TrainSettings
from es2.errors import Es2Error
from es2.judges import Means, make_all
from es2.judges.coherence import CalibratedJudge
from es2.judges.endpoint import Client
from es2.pipeline.evaluate import Evaluation

BASE = "base"


@dataclass(frozen=True)
class Contestant:
    """One defence in a comparison.

    Attributes:
        defence: its name; null if the comparison calls it by that.
        settings: its own.
        train: what differs from the defence's published training.
        seeds: of training; null for the comparison's.
        layers: the critical layers; null to find them.
    """

    defence: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Comparison:
    """Several defences of one model, measured alike.

    Attributes:
        run: what all of them have in common; its own defence counts for nothing, its seed cuts your
            files into splits.
        defences: who takes part, by the name that tables give them.
        seeds: of training, for those that name none.
        evaluate: what `es2 evaluate` would measure; null for attacks and costs alone.
        tune: trials in which each defence's settings are searched first, on validation prompts and
            with the first of its seeds, as `es2 harden --tune` does; 0 for none.
    """

    run: Recipe
    defences: dict[str, Contestant]
    seeds: tuple[int, ...] = (0,)
    evaluate: Evaluation | None = None
    tune: int = 0

    def members(self) -> dict[str, Recipe]:
        """Every run that the comparison is made of, by its name in tables: the base, then the rest.

        A defence that is trained with several seeds has one run for each, `NAME@SEED`.
        """
        run = self.run
        data = replace(run.data, seed=run.seed if run.data.seed is None else run.data.seed)
        common = replace(run, data=data, defence={}, stale=())
        found = {BASE: replace(common, name=BASE)}
        for label, one in self.defences.items():
            name = one.defence or label
            seeds = self.seeds if one.seeds is None else one.seeds
            train = checked(
                TrainSettings,
                asdict(DEFENCES.find(name).published) | one.train,
                f"defences.{label}.train: ",
            )
            for seed in seeds:
                own = label if len(seeds) == 1 else f"{label}@{seed}"
                found[own] = replace(
                    common,
                    name=own,
                    seed=seed,
                    defence={name: one.settings},
                    train=train,
                    layers=one.layers or run.layers,
                    stale=run.stale,
                    base=False,
                )
        return found


def load_comparison(path: Path) -> Comparison:
    """Reads and checks a comparison: a recipe with `defences` instead of `defence`.

    Raises:
        Es2Error: naming the file, the key and what is wrong with it.
    """
    values = read_yaml(path)
    try:
        if not values.get("defences"):
            raise Es2Error("no defences to compare; give `defences: {es2: {}, ...}` or use es2 run")
        several = ("defences", "seeds", "evaluate", "tune")
        own: dict[str, Any] = {name: values.pop(name) for name in several if name in values}
        for key in ("defence", "train", "base"):
            if key in values:
                raise Es2Error(f"{key}: belongs under one of the defences")
        own["defences"] = {
            label: checked(Contestant, mapping(one, f"defences.{label}"), f"defences.{label}: ")
            for label, one in mapping(own["defences"], "defences").items()
        }
        if own.get("seeds") == []:
            raise Es2Error("seeds is empty; give one or more")
        if own.get("evaluate") is not None:
            own["evaluate"] = _evaluation(own["evaluate"])
        found: Comparison = checked(Comparison, {"run": checked(Recipe, values), **own})
        check_least("tune", found.tune, 0)
        make_attacks(found.run.attacks)
        for label, one in found.defences.items():
            if label == BASE or "@" in label or "/" in label:
                raise Es2Error(f"defences.{label}: `base`, `@` and `/` have meanings of their own")
            make_defence({one.defence or label: one.settings})
        found.members()
    except Es2Error as error:
        raise Es2Error(f"{path}: {error}") from error
    return found


def _evaluation(values: object) -> Evaluation:
    values = dict(mapping(values, "evaluate"))
    if "push" in values:
        values["push"] = make_attacks({"push": values["push"]})[0]
    found: Evaluation = checked(Evaluation, values, "evaluate: ")
    client = Client(found.endpoint) if found.endpoint else None
    make_all(found.judges, Means(coherence=_unloaded, client=client))
    return found


def _unloaded() -> CalibratedJudge:
    raise AssertionError("a recipe's judges are only made, to see that there are such")
