"""A whole experiment, from a recipe to a report: the stages, each skipped where it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from es2.capability.drift import drift
from es2.config import Recipe, make_attacks
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.defences.reference import record
from es2.pipeline.answering import measure_answers
from es2.pipeline.attack import attack_model, label
from es2.pipeline.experiment import Experiment, load_all
from es2.pipeline.folder import RunFolder, facts
from es2.pipeline.harden import harden
from es2.pipeline.leaks import note, refuse, warn
from es2.progress import bar, console
from es2.report.build import REPORT, build
from es2.results.store import RESULTS, Kind, read_attempts, read_json, write_json
from es2.results.summary import rules_note, summarise, with_drift
from es2.separation.layers import choose, given, survey
from es2.separation.probe import prompt_states
from es2.separation.projection import AXES, project


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
    if not recipe.defence:
        folder.note(stopped="nothing is trained")
        return
    with folder.stage("harden"):
        hardened = harden(
            base,
            folder.path,
            fit=experiment.prompts.fit,
            layers=chosen.layers,
            defence=experiment.defence,
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
    recipe, prompts = experiment.recipe, experiment.prompts.harmful.test
    with experiment.folder.stage("attack"):
        judge = experiment.judge
        for name, victim in experiment.victims.items():
            for attack in make_attacks(recipe.attacks):
                victims = [victim]
                if attack.name in recipe.stale and name != "base":
                    victims.append(replace(victim, stale=True))
                aimed = spread(prompts, recipe.limits.get(attack.name, len(prompts)))
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
                "structured": prompts.structured.test,
            }
            for kind, group in groups.items():
                tokens, kinds = recipe.answer_tokens, [kind] * len(group)
                measure_answers(name, victim.chat, judge, group, kinds, tokens, path)
        if recipe.defence:
            drifting(experiment)
        write_results(experiment)


def drifting(experiment: Experiment) -> None:
    """Drift from the base on held-out harmless prompts: `drift.json`."""
    recipe, path = experiment.recipe, experiment.folder.path
    texts = [prompt.text for prompt in experiment.prompts.harmless.test]
    with bar("drift from the base", len(texts)) as advance:
        reference = record(
            experiment.base, texts, recipe.answer_tokens, whole_prompt=True, progress=advance
        )
        moved = drift(experiment.base, experiment.defended, reference)
    write_json(path / "drift.json", asdict(moved))


def write_results(experiment: Experiment) -> None:
    """`results.json` from the records and the drift, with what a reader has to know of the prompts."""
    recipe, path = experiment.recipe, experiment.folder.path
    records = read_attempts(path)
    results = summarise(records, published_settings(recipe))
    if recipe.base:
        results = with_drift(results, "base", 0.0, 1.0)
    if recipe.defence:
        moved = read_json(path / "drift.json")["response"]
        name = experiment.defence.name
        results = with_drift(results, name, moved["kl"], moved["perplexity_ratio"])
    notes = [note(leak) for leak in experiment.folder.record.get("overlap", [])]
    notes += rules_note(records)
    if (measured := recipe.data.measured) != "test":
        notes.append(f"measured on {measured} prompts, by which settings are chosen")
    if experiment.folder.record.get("best_step") == 0:
        notes.append("no checkpoint passed validation: what was measured is the untrained model")
    write_json(path / RESULTS, results.model_copy(update={"notes": notes}))


def published_settings(recipe: Recipe) -> dict[str, Sequence[str]]:
    """Each attack's published settings, by its name in the records."""
    attacks = make_attacks(recipe.attacks)
    return {label(one, stale): one.published for one in attacks for stale in (False, True)}
