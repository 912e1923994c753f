"""`es2 compare`: several defences of one model, measured alike, in one table and one report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from es2.errors import Es2Error
from es2.pipeline.compare import gather, gather_runs, run_members
from es2.pipeline.comparison import load_comparison
from es2.pipeline.evaluate import Evaluation
from es2.pipeline.plan import plan
from es2.pipeline.plan_table import show_plan
from es2.progress import output
from es2.report.comparison import sentence, tables
from es2.report.reading import read_run
from es2.results.comparison import rows


def compare(
    recipe: Annotated[Path | None, tyro.conf.Positional] = None,
    runs: tuple[Path, ...] = (),
    out: Path | None = None,
    only: tuple[str, ...] = (),
    sets: tuple[str, ...] = (),
    questions: Path | None = None,
    resume: bool = False,
    force: bool = False,
    json: bool = False,
    device_map: Literal["auto"] | None = None,
    dry_run: bool = False,
    gpu: str = "h100",
    devices: int = 1,
) -> None:
    """Runs a comparison's members that are not there yet, or gathers runs, and prints the tables.

    Args:
        recipe: a YAML file with `defences`; those shipped are in recipes/.
        runs: instead of a recipe, folders that es2 run has written, to be gathered.
        out: the folder; default runs/NAME; needed for --runs.
        only: run these members alone and gather nothing: base, or a defence as NAME or NAME@SEED.
            Machines or processes share a comparison so; the last command leaves --only away.
        sets: over-refusal sets instead of the recipe's: borderline, structured, xstest, or a file of
            labelled prompts or of questions.
        questions: a JSONL file of questions in MMLU-Pro's format, instead of the recipe's.
        resume: go on with a comparison that was interrupted; what is done is not done again.
        force: measure on test prompts that are fitted on too; the results say so.
        json: print results.json, or the plan of a dry run, on standard output, and nothing else.
        device_map: auto spreads each model's layers over all accelerators.
        dry_run: only say what it would take; no weights are loaded and nothing is written.
        gpu: that a dry run's hours are of: a100-40gb, a100-80gb, h100, h200, l40s or rtx4090.
        devices: how many of them.
    """
    if (recipe is None) == (not runs):
        raise Es2Error("give a recipe with defences, or --runs with run folders to gather")
    if (dry_run or only) and recipe is None:
        raise Es2Error("--dry-run and --only are of a recipe; gathering runs computes nothing")
    if recipe is not None:
        found = load_comparison(recipe)
        if sets or questions:
            asked = found.evaluate or Evaluation()
            asked = replace(asked, sets=sets or asked.sets, questions=questions or asked.questions)
            found = replace(found, evaluate=asked)
        if device_map is not None:
            found = replace(found, run=replace(found.run, device_map=device_map))
        if dry_run:
            show_plan(plan(found, gpu, devices), json)
            return
        folder = out or Path("runs") / found.run.name
        parts = run_members(found, folder, only, resume, force)
        if only:
            for part in parts:
                print(part.folder)
            return
        gather(parts, folder)
    elif out is None:
        raise Es2Error("--runs needs --out, the folder to gather into")
    else:
        folder = gather_runs(runs, out)
    if json:
        print((folder / "results.json").read_text(encoding="utf-8"))
        return
    run = read_run(folder)
    assert run.members is not None
    table = rows(run.members, run.results, run.refusal, run.capability, run.margin)
    console = output()
    for one in tables(table):
        console.print(one)
    console.print(sentence(table), soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(compare, args=argv, prog="es2 compare")
