"""What the stages of an experiment share: its prompts, its models, their embeddings, its judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from es2.attacks.base import Victim
from es2.config import Recipe, load_recipe, make_defence
from es2.data.fitting import FitPrompts, Splits, fit_prompts, split_three_ways, spread
from es2.data.sources import Prompt, load_prompts
from es2.defences import Defence
from es2.errors import Es2Error
from es2.judges.coherence import CalibratedJudge, Limits, calibrate
from es2.models.loading import ChatModel, load
from es2.pipeline.folder import RunFolder
from es2.pipeline.leaks import Leak, find_leaks
from es2.results.store import read_json
from es2.separation.probe import ClassStates, read_states


@dataclass(frozen=True)
class Prompts:
    """All of a run's prompts.

    Attributes:
        harmful: what a safe model refuses.
        harmless: what it answers.
        borderline: harmless ones that look harmful.
        structured: harmless ones over several lines.
        limit: prompts of a class to train on, at most.
        measured: which split stands under `test`: what the run measures on.
    """

    harmful: Splits
    harmless: Splits
    borderline: Splits
    structured: Splits
    limit: int | None
    measured: str = "test"

    @property
    def fit(self) -> FitPrompts:
        """What the defence is fitted on; borderline and structured prompts are among the harmless."""
        return fit_prompts(
            self.harmful, self.harmless, self.borderline, self.structured, at_most=self.limit
        )

    @property
    def probe_fit(self) -> FitPrompts:
        """What layers are chosen and attacks are fitted on: more than the 140 a class of SCAV."""
        return fit_prompts(self.harmful, self.harmless, at_most=200)


def load_all(recipe: Recipe, load: Callable[..., list[Prompt]] = load_prompts) -> Prompts:
    """Loads and splits the prompts that a recipe names.

    Args:
        recipe: names them.
        load: loads one source, with the arguments of `load_prompts`.
    """
    data = recipe.data

    def splits(source: str | None, harmful: bool) -> Splits:
        if source is None:
            return Splits([], [], [])
        read = partial(load, source, prompt_column=data.prompt_column, harmful=harmful)
        seed = recipe.seed if data.seed is None else data.seed
        found = split_three_ways(lambda split: read(split=split), source, seed)
        found = replace(found, test=getattr(found, data.measured))
        limit = data.test if harmful else data.test_harmless
        return found if limit is None else replace(found, test=spread(found.test, limit))

    return Prompts(
        splits(data.harmful, True),
        splits(data.harmless, False),
        splits(data.borderline, False),
        splits(data.structured, False),
        data.train,
        data.measured,
    )


def evaluated_prompts(prompts: Prompts) -> dict[str, list[str]]:
    """What a run measures on, by name."""
    return _named(prompts, {prompts.measured: "test"})


def fitted_prompts(prompts: Prompts) -> dict[str, list[str]]:
    """What a run fits on or chooses by, by name; without what it is told to measure on."""
    chosen = {split: split for split in ("train", "validation") if split != prompts.measured}
    return _named(prompts, chosen)


def _named(prompts: Prompts, splits: Mapping[str, str]) -> dict[str, list[str]]:
    found = {}
    for name in ("harmful", "harmless", "borderline", "structured"):
        for split, place in splits.items():
            texts = [prompt.text for prompt in getattr(getattr(prompts, name), place)]
            if texts:
                found[f"{name}:{split}"] = texts
    return found


@dataclass
class Experiment:
    """What a run's stages share; models and states are loaded when a stage first needs them."""

    recipe: Recipe
    folder: RunFolder
    prompts: Prompts

    @property
    def dtype(self) -> torch.dtype | None:
        """The weights' type; None for the device's default."""
        name = self.recipe.dtype
        return None if name == "auto" else getattr(torch, name)

    @cached_property
    def defence(self) -> Defence:
        """What is trained, with its settings."""
        return make_defence(self.recipe.defence)

    @cached_property
    def leaks(self) -> list[Leak]:
        """Test prompts that also stand, exactly or nearly, among those fitted on."""
        return find_leaks(evaluated_prompts(self.prompts), fitted_prompts(self.prompts))

    @cached_property
    def base(self) -> ChatModel:
        """The model before the defence."""
        return load(self.recipe.model, dtype=self.dtype, device_map=self.recipe.device_map)

    @cached_property
    def base_states(self) -> ClassStates:
        """The base's embeddings of the prompts that layers and attacks are fitted on."""
        return read_states(self.base, self.prompts.probe_fit)

    @cached_property
    def defended(self) -> ChatModel:
        """The model after it, as anyone would load it from the run folder."""
        adapter = self.folder.path / "adapter"
        load_there = partial(load, dtype=self.dtype, device_map=self.recipe.device_map)
        if adapter.is_dir():
            return load_there(self.recipe.model, adapter=adapter)
        return load_there(str(self.folder.path / "model"))

    @property  # not cached: it would keep the base that an adapter has since been attached to
    def judge(self) -> CalibratedJudge:
        """The base with its limits of coherence, set once a run from its own harmless answers."""
        limits = Limits.recorded(self.folder.record.get("judge"))
        if limits is None:
            limits = calibrate(self.base, spread(self.prompts.fit.held_harmless, 24))
            self.folder.note(judge=asdict(limits))
        return CalibratedJudge(self.base, limits)

    @cached_property
    def victims(self) -> dict[str, Victim]:
        """The models to measure, by the name that results give them."""
        fit = self.prompts.probe_fit
        found = {}
        if self.recipe.base:
            found["base"] = Victim(self.base, fit, lambda base, fit: self.base_states, self.base)
        if self.recipe.defence:
            found[self.defence.name] = Victim(self.defended, fit, base=self.base)
        return found


def reopen(path: Path) -> Experiment:
    """The experiment that a run folder holds, to measure more of it.

    Raises:
        Es2Error: if there is no run, or its defence has not been trained.
    """
    if not (path / "config.yaml").is_file():
        raise Es2Error(f"{path}: not a run folder; give one that es2 run has written")
    # Settings that a later version added have their defaults; the file stays as it was run.
    recipe = load_recipe(path / "config.yaml")
    settings = (path / "config.yaml").read_text(encoding="utf-8")
    folder = RunFolder(path, settings, read_json(path / "run.json"))
    trained = (path / "adapter").is_dir() or (path / "model").is_dir()
    if recipe.defence and not trained:
        raise Es2Error(f"{path}: holds no hardened model yet; go on with es2 run --resume")
    return Experiment(recipe, folder, load_all(recipe))
