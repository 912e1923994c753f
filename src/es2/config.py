"""A run's settings: what a recipe's YAML may say, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from es2.attacks import ATTACKS, Attack
from es2.defences import DEFENCES, Defence
from es2.defences.es2 import Es2
from es2.defences.trainer import LEAST, TrainSettings
from es2.errors import Es2Error
from es2.pipeline.harden import Guard


@dataclass(frozen=True)
class Data:
    """Where prompts come from: a bundled name, a file, a public set or `hub:OWNER/NAME`.

    Attributes:
        harmful: what a safe model refuses.
        harmless: what it answers.
        borderline: harmless prompts that look harmful; null for none.
        structured: harmless prompts over several lines: options, passages, data, code; null for none.
        prompt_column: the prompts' column in a user's files; null to guess.
        train: at most this many prompts of each class to train the defence on, half of the harmless
            ones borderline and a quarter structured if there are as many; null for all. By default
            as many as es2 reads.
        test: at most this many harmful prompts to attack with; null for all.
        test_harmless: at most this many harmless, borderline and structured prompts each to measure
            costs on; null for all.
        seed: of the cut of your own files into splits; null for the run's.
        measured: what is attacked and asked: the `test` prompts, or those for `validation`, by which
            settings are chosen; the results then say so.
    """

    harmful: str = "harmful"
    harmless: str = "harmless"
    borderline: str | None = "borderline"
    structured: str | None = "structured"
    prompt_column: str | None = None
    train: int | None = 960
    test: int | None = None
    test_harmless: int | None = None
    seed: int | None = None
    measured: Literal["test", "validation"] = "test"


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        model: an embedded name, a Hub id, a folder, or an adapter folder.
        name: of the run's folder under `runs/`.
        seed: of everything random; `train.seed` gives way to it.
        defence: its settings, by its name; the one that the run trains. Empty: the run measures the
            undefended model alone.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device_map: auto spreads each model's layers over all accelerators; null for one device.
        layers: the critical layers; null to find them.
        data: prompts.
        train: the training loop; in a recipe, what is not given is as the defence's source has it.
        guard: when validation calls a model broken.
        attacks: settings of each attack, by its name.
        limits: at most so many of the test prompts, spread evenly, for an attack that takes long.
        stale: those of them that also attack fitted on the undefended model alone.
        answer_tokens: length of an answer to a harmless prompt.
        base: measure the undefended model too.
    """

    model: str
    name: str = "run"
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: Literal["auto"] | None = None
    layers: tuple[int, ...] | None = None
    data: Data = Data()
    defence: dict[str, dict[str, Any]] = field(default_factory=lambda: {"es2": {}})
    train: TrainSettings = Es2.published
    guard: Guard = Guard()
    attacks: dict[str, dict[str, Any]] = field(default_factory=lambda: {"direct": {}, "scav": {}})
    limits: dict[str, int] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    answer_tokens: int = 24
    base: bool = True

    # Read by pydantic: a misspelt key is an error, not a silently ignored one.
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises an Es2Error for a number that no run can be made with."""
        for name, least in _LEAST.items():
            check_least(name, attrgetter(name)(self), least)
        if not 0 <= self.seed < 2**32:
            raise Es2Error(f"seed is {self.seed}, but has to lie between 0 and 2**32 - 1")
        if len(self.defence) > 1:
            raise Es2Error(f"defence: a run trains one, but {len(self.defence)} are given")
        for setting in ("stale", "limits"):
            if strange := sorted(set(getattr(self, setting)) - set(self.attacks)):
                raise Es2Error(f"{setting}: {strange[0]!r} is not among the attacks")
        for name, limit in self.limits.items():
            check_least(f"limits.{name}", limit, 1)
        if not (self.base or self.defence):
            raise Es2Error("base: false, but no defence is given: nothing is left to measure")
        if not self.train.lr > 0:
            raise Es2Error(f"train.lr is {self.train.lr}, but has to be above 0")
        if self.train.min_lr_rate > 1:
            raise Es2Error(
                f"train.min_lr_rate is {self.train.min_lr_rate}, but is a share of train.lr"
            )


_LEAST = {
    "answer_tokens": 1,
    "data.train": 1,
    "data.test": 1,
    "data.test_harmless": 1,
    **{f"train.{name}": least for name, least in LEAST.items()},
    "guard.prompts": 1,
    "guard.tokens": 1,
}
"""The least that a setting may be."""


def check_least(name: str, value: float | None, least: float) -> None:
    """Refuses a setting below the least that it may be; None is for one that is not given.

    Raises:
        Es2Error: naming the setting.
    """
    if value is not None and not value >= least:
        raise Es2Error(f"{name} is {value}, but has to be at least {least}")


def make_defence(settings: Mapping[str, Mapping[str, Any] | None]) -> Defence:
    """The one defence that a recipe names, with checked settings.

    Raises:
        Es2Error: for an unknown defence or setting.
    """
    ((name, values),) = settings.items()
    kind = DEFENCES.find(name)
    defence: Defence = checked(kind, dict(values or {}), f"defence.{name}: ")
    check_all(f"defence.{name}", defence)
    return defence


def check_all(where: str, made: object) -> None:
    """Refuses empty lists, and settings below what the class attribute `least` says, if it has one.

    Raises:
        Es2Error: naming the setting after `where`.
    """
    for name, value in vars(made).items():
        if value == ():
            raise Es2Error(f"{where}.{name} is empty; give one or more")
    for name, least in getattr(made, "least", {}).items():
        given = getattr(made, name)
        for value in given if isinstance(given, tuple) else (given,):
            check_least(f"{where}.{name}", value, least)


def make_attacks(settings: dict[str, dict[str, Any]]) -> list[Attack]:
    """Attacks by name, with checked settings.

    Raises:
        Es2Error: for an unknown attack or setting, or one that no attack can be made with.
    """
    attacks: list[Attack] = []
    for name, values in settings.items():
        attacks.append(checked(ATTACKS.find(name), values or {}, f"attacks.{name}: "))
        check_all(f"attacks.{name}", attacks[-1])
    return attacks


def load_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        Es2Error: naming the file, the key and what is wrong with it.
    """
    values = read_yaml(path)
    if "defences" in values:
        raise Es2Error(f"{path}: compares several defences; run it with es2 compare")
    try:
        recipe: Recipe = checked(Recipe, _of_defence(values))
        make_attacks(recipe.attacks)
        if recipe.defence:
            make_defence(recipe.defence)
    except Es2Error as error:
        raise Es2Error(f"{path}: {error}") from error
    return recipe


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe's values as they are written.

    Raises:
        Es2Error: if the file is missing or no mapping in YAML.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Es2Error(f"{path}: no such recipe; those shipped are in recipes/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Es2Error(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise Es2Error(f"{path}: a recipe is a mapping of settings, at the least `model: NAME`")
    return values


def _of_defence(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with a defence that is only named, and what it leaves out of training."""
    named = values.get("defence", "es2")
    defence = {named: {}} if isinstance(named, str) else named
    train = values.get("train") or {}
    if isinstance(defence, dict) and len(defence) == 1 and isinstance(train, dict):
        train = asdict(DEFENCES.find(next(iter(defence))).published) | train
    return values | {"defence": defence, "train": train}


def dump(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML."""
    plain = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    plain["attacks"] = {
        attack.name: TypeAdapter(type(attack)).dump_python(attack, mode="json")
        for attack in make_attacks(recipe.attacks)
    }
    if recipe.defence:
        one = make_defence(recipe.defence)
        plain["defence"] = {one.name: TypeAdapter(type(one)).dump_python(one, mode="json")}
    return yaml.safe_dump(plain, sort_keys=False)


def mapping(values: object, where: str) -> dict[str, Any]:
    """What a recipe has under a key, where that has to be a mapping of settings, or nothing.

    Raises:
        Es2Error: naming the key.
    """
    if values is not None and not isinstance(values, dict):
        raise Es2Error(f"{where}: {values!r} is no mapping of settings, such as `{{name: {{}}}}`")
    return values or {}


def checked(kind: type, values: dict[str, Any], where: str = "") -> Any:
    """A dataclass of settings from plain values.

    Raises:
        Es2Error: for an unknown or unfit setting, named after `where`.
    """
    known = [setting.name for setting in fields(kind)]
    if strange := [key for key in values if key not in known]:
        raise Es2Error(f"{where}no setting {strange[0]!r}; there are {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise Es2Error(f"{where}{key}: {first['msg']}") from error
