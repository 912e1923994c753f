"""A whole experiment, from a recipe to a report: the stages, each skipped where it is done."""

from __future__ import annotations

import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from es2.attacks.base import Victim
from es2.capability.drift import Drift, drift
from es2.config import Recipe, dump, load_recipe, make_attacks
from es2.data.fitting import FitPrompts, Splits, fit_prompts, split_three_ways, spread
from es2.data.sources import Prompt, load_prompts
from es2.defences.reference import record
from es2.errors import Es2Error
from es2.judges.coherence import CalibratedJudge, Limits, calibrate
from es2.models.loading import ChatModel, load
from es2.pipeline.attack import attack_model, label
from es2.pipeline.cost import measure_refusals
from es2.pipeline.harden import harden, read_states
from es2.pipeline.leaks import Leak, find_leaks, note, refuse, warn
from es2.progress import bar, console
from es2.report.build import REPORT, build
from es2.results.store import RESULTS, Kind, read_attempts, read_json, write_json, write_text
from es2.results.summary import summarise, with_drift
from es2.separation.layers import choose, given, survey
from es2.separation.probe import ClassStates, prompt_states
from es2.separation.projection import AXES, project

PACKAGES = ("es2", "torch", "transformers", "peft", "scikit-learn")


@dataclass(frozen=True)
class Prompts:
    """All of a run's prompts."""

    harmful: Splits
    harmless: Splits
    borderline: Splits

    limit: int | None

    @property
    def fit(self) -> FitPrompts:
        """What the defence is fitted on; borderline prompts are among the harmless."""
        return fit_prompts(self.harmful, self.harmless, self.borderline).at_most(self.limit)

    @property
    def probe_fit(self) -> FitPrompts:
        """What layers are chosen and attacks are fitted on: more than the 140 a class of SCAV."""
        return fit_prompts(self.harmful, self.harmless).at_most(200)


def load_all(recipe: Recipe) -> Prompts:
    """Loads and splits the prompts that a recipe names."""
    data = recipe.data

    def splits(source: str | None, harmful: bool) -> Splits:
        if source is None:
            return Splits([], [], [])
        read = partial(load_prompts, source, prompt_column=data.prompt_column, harmful=harmful)
        found = split_three_ways(lambda split: read(split=split), source, recipe.seed)
        limit = data.test if harmful else data.test_harmless
        return found if limit is None else replace(found, test=spread(found.test, limit))

    return Prompts(
        splits(data.harmful, True),
        splits(data.harmless, False),
        splits(data.borderline, False),
        data.train,
    )


def evaluated_prompts(prompts: Prompts) -> dict[str, list[str]]:
    """What a run measures on, by name."""
    return _named(prompts, ("test",))


def fitted_prompts(prompts: Prompts) -> dict[str, list[str]]:
    """What a run fits on or chooses by, by name."""
    return _named(prompts, ("train", "validation"))


def _named(prompts: Prompts, splits: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for name in ("harmful", "harmless", "borderline"):
        for split in splits:
            texts = [prompt.text for prompt in getattr(getattr(prompts, name), split)]
            if texts:
                found[f"{name}:{split}"] = texts
    return found


@dataclass
class RunFolder:
    """A run's folder and the record of its stages in `run.json`.

    The folder is made with the first note: a run that cannot start leaves nothing behind.
    """

    path: Path
    settings: str
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, recipe: Recipe, resume: bool) -> RunFolder:
        """A new folder, or one to go on with.

        Raises:
            Es2Error: if the folder holds another run, or this one and `resume` was not asked for.
        """
        config = path / "config.yaml"
        settings = dump(recipe)
        if config.is_file():
            if not resume:
                raise Es2Error(f"{path} holds a run already; add --resume or give another --out")
            if config.read_text(encoding="utf-8") != settings:
                raise Es2Error(
                    f"{path} was run with other settings (see config.yaml there); give another --out"
                )
        known = read_json(path / "run.json") if (path / "run.json").is_file() else {}
        return cls(path, settings, known)

    def note(self, **values: Any) -> None:
        """Adds to `run.json`; the settings are written before anything else is."""
        if not (self.path / "config.yaml").is_file():
            write_text(self.path / "config.yaml", self.settings)
        self.record |= values
        write_json(self.path / "run.json", self.record)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Records a stage's time and the process's peak memory so far; adds up over resumes."""
        started = time.perf_counter()
        yield
        stages = self.record.get("stages", {})
        before = stages.get(name, {}).get("seconds", 0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        stages[name] = {
            "seconds": round(before + time.perf_counter() - started, 1),
            "peak_memory_mb": round(max(peak, stages.get(name, {}).get("peak_memory_mb", 0))),
        }
        self.note(stages=stages)


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
    def leaks(self) -> list[Leak]:
        """Test prompts that also stand, exactly or nearly, among those fitted on."""
        return find_leaks(evaluated_prompts(self.prompts), fitted_prompts(self.prompts))

    @cached_property
    def base(self) -> ChatModel:
        """The model before the defence."""
        return load(self.recipe.model, dtype=self.dtype)

    @cached_property
    def base_states(self) -> ClassStates:
        """The base's embeddings of the prompts that layers and attacks are fitted on."""
        return read_states(self.base, self.prompts.probe_fit)

    @cached_property
    def defended(self) -> ChatModel:
        """The model after it, as anyone would load it from the run folder."""
        adapter = self.folder.path / "adapter"
        if adapter.is_dir():
            return load(self.recipe.model, dtype=self.dtype, adapter=adapter)
        return load(str(self.folder.path / "model"), dtype=self.dtype)

    @property  # not cached: it would keep the base that an adapter has since been attached to
    def judge(self) -> CalibratedJudge:
        """The base with its limits of coherence, set once a run from its own harmless answers."""
        known = self.folder.record.get("judge")
        if known is None:
            texts = self.prompts.fit.held_harmless
            known = asdict(calibrate(self.base, spread(texts, 24)))
            self.folder.note(judge=known)
        return CalibratedJudge(self.base, Limits(**known))

    @cached_property
    def victims(self) -> dict[str, Victim]:
        """The models to measure, by the name that results give them."""
        fit = self.prompts.probe_fit
        return {
            "base": Victim(self.base, fit, lambda base, fit: self.base_states, self.base),
            "es2": Victim(self.defended, fit, read_states, self.base),
        }


def reopen(path: Path) -> Experiment:
    """The experiment that a run folder holds, to measure more of it.

    Raises:
        Es2Error: if there is no run, or its defence has not been trained.
    """
    if not (path / "config.yaml").is_file():
        raise Es2Error(f"{path}: not a run folder; give one that es2 run has written")
    recipe = load_recipe(path / "config.yaml")
    folder = RunFolder.open(path, recipe, resume=True)
    if not ((path / "adapter").is_dir() or (path / "model").is_dir()):
        raise Es2Error(f"{path}: holds no hardened model yet; go on with es2 run --resume")
    return Experiment(recipe, folder, load_all(recipe))


def run(
    recipe: Recipe, out: Path | None = None, *, resume: bool = False, force: bool = False
) -> Path:
    """Runs a recipe's stages and returns the run folder.

    Args:
        recipe: what to run.
        out: the folder; default `runs/NAME`.
        resume: go on with an interrupted run; what is done is not done again.
        force: measure on prompts that are fitted on too; the results say so.

    Raises:
        Es2Error: if test prompts are copies of prompts fitted on, unless forced.
    """
    prompts = load_all(recipe)
    folder = RunFolder.open(out or Path("runs") / recipe.name, recipe, resume)
    experiment = Experiment(recipe, folder, prompts)
    if "overlap" not in folder.record:  # a run that has started was let through
        refuse(experiment.leaks, force)
    if not (folder.path / RESULTS).is_file():  # the last stage's
        hardening(experiment)
        geometry(experiment)
        attacking(experiment)
        costs(experiment)
    if not (folder.path / REPORT).is_file():
        build(folder.path)
    return folder.path


def hardening(experiment: Experiment) -> None:
    """Finds the layers and separates: `adapter/`, `metrics.jsonl`."""
    recipe, folder = experiment.recipe, experiment.folder
    if "stopped" in folder.record:
        return
    with folder.stage("load"):
        base = experiment.base
        chosen = None if recipe.layers is None else given(recipe.layers, base.depth)
        if "started" not in folder.record:
            warn(experiment.leaks)
            folder.note(**facts(), model=recipe.model, seed=recipe.seed, overlap=experiment.leaks)
        folder.note(thinking=base.template.thinking)
    with folder.stage("layers"):
        rows = survey(experiment.base_states)
        chosen = chosen or choose(rows)
        console.print(f"critical layers {chosen.layers}: {chosen.why}", highlight=False)
        curve = [asdict(row) for row in rows]
        write_json(
            folder.path / "layers.json", {"chosen": chosen.record(), "curves": {"base": curve}}
        )
    with folder.stage("harden"):
        hardened = harden(
            base,
            folder.path,
            fit=experiment.prompts.fit,
            layers=chosen.layers,
            terms=recipe.es2,
            settings=replace(recipe.train, seed=recipe.seed),
            guard=recipe.guard,
            limits=experiment.judge.limits,
            states=experiment.base_states,
            resume=True,
        )
    progress = hardened.progress
    console.print(f"stopped: {progress.stopped}; kept step {progress.best_step}", highlight=False)
    folder.note(stopped=progress.stopped, best_step=progress.best_step, steps=progress.step)
    # The adapter was attached to the base's own modules; the base is loaded afresh when needed.
    del experiment.base


def geometry(experiment: Experiment) -> None:
    """What the embeddings look like before and after: `layers.json`, `embeddings.json`."""
    path = experiment.folder.path
    if (path / "embeddings.json").is_file():
        return
    with experiment.folder.stage("geometry"):
        found = read_json(path / "layers.json")
        borderline = [prompt.text for prompt in experiment.prompts.borderline.validation]
        layers: dict[str, Any] = {}
        for name, victim in experiment.victims.items():
            states = victim.states
            if name not in found["curves"]:
                found["curves"][name] = [asdict(row) for row in survey(states)]
            extra = prompt_states(victim.chat, borderline) if borderline else states.harmful[:0]
            for layer in found["chosen"]["layers"]:
                unit = found["curves"]["base"][layer - 1]["spread"]
                at = layer - 1
                points = project(
                    states.held_harmful[:, at], states.held_harmless[:, at], extra[:, at], unit
                )
                layers.setdefault(str(layer), {})[name] = {
                    kind: [[round(float(v), 3) for v in point] for point in group]
                    for kind, group in zip(
                        ("harmful", "harmless", "borderline"), points, strict=True
                    )
                }
        write_json(path / "layers.json", found)
        write_json(path / "embeddings.json", {"layers": layers, "axes": AXES})


def attacking(experiment: Experiment) -> None:
    """Every attack, refitted on every model, and on the base where asked: `attempts.jsonl`."""
    recipe, aimed = experiment.recipe, experiment.prompts.harmful.test
    with experiment.folder.stage("attack"):
        judge = experiment.judge
        for name, victim in experiment.victims.items():
            for attack in make_attacks(recipe.attacks):
                victims = [victim]
                if attack.name in recipe.stale and name != "base":
                    victims.append(replace(victim, stale=True))
                for known in victims:
                    attack_model(name, known, judge, attack, aimed, experiment.folder.path)


def costs(experiment: Experiment) -> None:
    """Refusals of harmless prompts and drift from the base; then `results.json`."""
    recipe, prompts, path = experiment.recipe, experiment.prompts, experiment.folder.path
    with experiment.folder.stage("cost"):
        judge = experiment.judge
        for name, victim in experiment.victims.items():
            groups: dict[Kind, list[Prompt]] = {
                "harmless": prompts.harmless.test,
                "borderline": prompts.borderline.test,
            }
            for kind, group in groups.items():
                measure_refusals(name, victim.chat, judge, kind, group, recipe.answer_tokens, path)
        texts = [prompt.text for prompt in prompts.harmless.test]
        with bar("drift from the base", len(texts)) as advance:
            reference = record(
                experiment.base, texts, recipe.answer_tokens, whole_prompt=True, progress=advance
            )
            moved = drift(experiment.base, experiment.defended, reference)
        write_json(path / "drift.json", asdict(moved))
        leaks = experiment.folder.record.get("overlap", [])
        write_results(path, recipe, moved, [note(leak) for leak in leaks])


def write_results(path: Path, recipe: Recipe, moved: Drift, notes: Sequence[str] = ()) -> None:
    """`results.json` from the records; `notes` are what a reader has to know of the prompts."""
    attacks = make_attacks(recipe.attacks)
    published = {label(one, s): one.published for one in attacks for s in (False, True)}
    results = summarise(read_attempts(path), published)
    results = with_drift(results, "base", 0.0, 1.0)
    results = with_drift(results, "es2", moved.kl, moved.perplexity_ratio)
    write_json(path / "results.json", results.model_copy(update={"notes": list(notes)}))


def facts() -> dict[str, Any]:
    """What a reader needs to know of the machine and the software."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        here = Path(__file__).parent
        git = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
        revision = git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "es2_version": version("es2"),
        "versions": {name: version(name) for name in PACKAGES},
        "git": revision,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}",
    }
