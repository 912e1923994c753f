"""Several defences measured alike and gathered into one folder, one table and one report.

Every defence and seed is a run of its own under `members/`, as `es2 run` makes it, and so is the
undefended model, which is measured once. What they hold is then gathered into a folder that reads like
a run's, with `comparison.json` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from es2.config import Recipe, dump, load_recipe
from es2.errors import Es2Error
from es2.pipeline.alike import check_alike, check_rules
from es2.pipeline.comparison import BASE, Comparison
from es2.pipeline.evaluate import OVER_REFUSAL, evaluate
from es2.pipeline.experiment import load_all, reopen
from es2.pipeline.margin import MARGIN
from es2.pipeline.run import published_settings, run
from es2.pipeline.search import picked, tuned, with_trial
from es2.progress import console
from es2.report.build import build
from es2.results.answers import AnswerFile
from es2.results.capability import ANSWERS, CAPABILITY, CapabilityResults, benchmarks
from es2.results.comparison import COMPARISON, Member, Members, without_seed
from es2.results.margin import margins
from es2.results.opinions import JUDGES_FILE, VERDICTS_FILE, Judges, attempt_key, together
from es2.results.over_refusal import over_refusal
from es2.results.panel import panel
from es2.results.store import (
    ATTEMPTS,
    RESULTS,
    read_attempts,
    read_json,
    read_model,
    read_records,
    write_json,
    write_text,
)
from es2.results.summary import summarise, with_drift

MEMBERS = "members"
TUNED = "tuned"


@dataclass(frozen=True)
class Part:
    """One model's share of a run folder.

    Attributes:
        label: its name in the comparison.
        folder: of its run.
        name: its name there.
        recipe: of its run.
    """

    label: str
    folder: Path
    name: str
    recipe: Recipe

    def records(self, file: str, key: str = "defence") -> Iterator[dict[str, Any]]:
        """The model's records in one of the folder's files, under its name in the comparison."""
        for record in read_records(self.folder / file):
            if record[key] == self.name:
                yield {**record, key: self.label}


def run_members(
    comparison: Comparison,
    out: Path,
    only: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
) -> list[Part]:
    """Runs what has not been run, each member in its own folder, and returns their parts.

    Args:
        comparison: what to run.
        out: the folder.
        only: names of members; empty for all. Several processes may share a comparison so, each with
            members of its own.
        resume: go on with an interrupted comparison; what is done is not done again.
        force: measure on prompts that are fitted on too; the results say so.

    Raises:
        Es2Error: if there is no such member, or their folders are there already, unless resumed; if
            not all verdicts are of one version of the rules.
    """
    members = comparison.members()
    if strange := sorted(set(only) - set(members)):
        raise Es2Error(f"--only {strange[0]}: no such member; there are {', '.join(members)}")
    members = {label: recipe for label, recipe in members.items() if not only or label in only}
    if not resume and any((out / MEMBERS / label).is_dir() for label in members):
        raise Es2Error(f"{out} holds a comparison already; add --resume or give another --out")
    for place, (label, recipe) in enumerate(members.items(), 1):
        console.print(f"{place} of {len(members)}: {label}", style="bold", markup=False)
        if comparison.tune and recipe.defence:
            recipe = _tuned(recipe, label, out, comparison.tune)
        folder = run(recipe, out / MEMBERS / label, resume=True, force=force)
        if comparison.evaluate is not None:
            asked = comparison.evaluate
            evaluate(reopen(folder), replace(asked, force=force or asked.force))
    if not only:  # all are there and are about to be gathered
        check_rules([out / MEMBERS / label for label in members])
    return [_part(label, out / MEMBERS / label) for label in members]


def _tuned(recipe: Recipe, label: str, out: Path, trials: int) -> Recipe:
    """The recipe with settings searched for; training seeds of a defence share the search."""
    study = out / TUNED / without_seed(label)
    study.mkdir(parents=True, exist_ok=True)
    with FileLock(study / ".lock"):
        found = tuned(recipe, load_all(recipe), study, trials, resume=True)
    return with_trial(recipe, picked(found, None))


def gather_runs(runs: Sequence[Path], out: Path) -> Path:
    """Compares runs that `es2 run` has made: the first one's base, and every run's defence.

    Raises:
        Es2Error: if one is not finished, they were not made and measured alike, the first has no
            base, or two have one name.
    """
    for path in runs:
        if not (path / RESULTS).is_file():
            raise Es2Error(f"{path}: holds no finished run; go on with es2 run --resume")
    first = load_recipe(runs[0] / "config.yaml")
    if not first.base:
        raise Es2Error(f"{runs[0]}: has not measured the base; name first a run that has")
    check_alike(runs)
    parts = [_part(path.name, path) for path in runs]
    parts = [Part(BASE, runs[0], BASE, first), *(one for one in parts if one.recipe.defence)]
    if len({part.label for part in parts}) < len(parts):
        raise Es2Error("two runs have the same folder name; rename one")
    return gather(parts, out)


def gather(parts: Sequence[Part], out: Path) -> Path:
    """One folder out of many: records under the comparison's names, rates from the records."""
    for file in (ATTEMPTS, f"over_refusal/{ATTEMPTS}", f"margin/{ATTEMPTS}"):
        _merge(out / file, (record for part in parts for record in part.records(file)))
    _merge(out / ANSWERS, (record for part in parts for record in part.records(ANSWERS, "model")))
    results = summarise(read_attempts(out), published_settings(parts[0].recipe))
    said: dict[str, list[str]] = {}
    for part in parts:
        for note in read_json(part.folder / RESULTS)["notes"]:
            said.setdefault(note, []).append(part.label)
        moved = {"kl": 0.0, "perplexity_ratio": 1.0}
        if part.label != BASE:
            moved = read_json(part.folder / "drift.json")["response"]
        results = with_drift(results, part.label, moved["kl"], moved["perplexity_ratio"])
    notes = [
        note if len(labels) == len(parts) else f"{', '.join(labels)}: {note}"
        for note, labels in said.items()
    ]
    write_json(out / RESULTS, results.model_copy(update={"notes": notes}))
    if pushed := read_attempts(out / "margin"):
        write_json(out / MARGIN, margins(pushed))
    if asked := read_attempts(out / "over_refusal"):
        write_json(out / OVER_REFUSAL, over_refusal(asked))
    _gather_capability(parts, out)
    _gather_judges(parts, out)
    write_json(out / COMPARISON, Members(members={part.label: _member(part) for part in parts}))
    write_text(out / "config.yaml", dump(parts[0].recipe))
    write_json(out / "run.json", read_json(parts[0].folder / "run.json"))
    build(out)
    return out


def _gather_capability(parts: Sequence[Part], out: Path) -> None:
    answers = read_records(out / ANSWERS)
    if not answers:
        return
    first = next(part.folder for part in parts if (part.folder / CAPABILITY).is_file())
    known = read_model(first / CAPABILITY, CapabilityResults)
    names = {part.label: part.label for part in parts}
    update = {"models": names, "benchmarks": benchmarks(answers)}
    write_json(out / CAPABILITY, known.model_copy(update=update))


def _gather_judges(parts: Sequence[Part], out: Path) -> None:
    """Verdicts of other judges on members or on the whole, in the version that the last one shows."""
    said = read_records(out / VERDICTS_FILE)
    said += [line for part in parts for line in part.records(VERDICTS_FILE)]
    if not said:
        return
    lines = {json.dumps(line): line for line in said}  # gathering again repeats none
    write_text(out / VERDICTS_FILE, "\n".join(lines) + "\n")
    known = [
        read_model(part.folder / JUDGES_FILE, Judges)
        for part in parts
        if (part.folder / JUDGES_FILE).is_file()
    ]
    shown = {name: judge.version for of in known for name, judge in of.judges.items()}
    attempts = {attempt_key(record) for record in read_attempts(out)}
    spent = together([*(of.spending for of in known), AnswerFile(out).spending()])
    write_json(out / JUDGES_FILE, panel(lines.values(), attempts, spent, shown))


def _merge(path: Path, records: Iterator[Mapping[str, Any]]) -> None:
    """Writes records anew, if there are any: gathering again repeats none."""
    if lines := [json.dumps(record) for record in records]:
        write_text(path, "\n".join(lines) + "\n")


def _member(part: Part) -> Member:
    record = read_json(part.folder / "run.json")
    training = record.get("stages", {}).get("harden", {})
    if part.label == BASE:
        return Member(folder=str(part.folder))
    return Member(
        defence=part.name,
        seed=part.recipe.seed,
        folder=str(part.folder),
        stopped=record.get("stopped"),
        steps=record.get("steps"),
        kept=record.get("best_step"),
        train_seconds=training.get("seconds"),
        peak_memory_mb=training.get("peak_memory_mb"),
    )


def _part(label: str, folder: Path) -> Part:
    recipe = load_recipe(folder / "config.yaml")
    (name,) = recipe.defence or (BASE,)
    return Part(label, folder, name, recipe)
