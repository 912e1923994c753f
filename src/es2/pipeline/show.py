"""What a run prints at its end: tables and the report's path, or its results as JSON."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

from es2.progress import output
from es2.report.comparisons import comparisons, counted
from es2.report.formats import difference, name
from es2.report.margin import margin_table, sentences
from es2.report.reading import read_run
from es2.report.table import table
from es2.results.store import read_results


def show(folder: Path, json: bool) -> None:
    """Prints a run's results on standard output.

    Args:
        folder: the run folder.
        json: results.json as it is, and nothing else.
    """
    if json:
        print((folder / "results.json").read_text(encoding="utf-8"))
        return
    console = output(highlight=True)
    console.print(table(read_results(folder).model_dump(mode="json")))
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


def show_evaluation(folder: Path, json: bool) -> None:
    """Prints what `es2 evaluate` measured on standard output.

    Args:
        folder: the run folder.
        json: the files' contents by their names, and nothing else.
    """
    run = read_run(folder)
    if json:
        parts = {
            "drift": run.drift,
            "over_refusal": run.refusal and run.refusal.model_dump(mode="json"),
            "capability": run.capability and run.capability.model_dump(mode="json"),
            "margin": run.margin and run.margin.model_dump(mode="json"),
            "absent": run.run.get("absent") or {},
        }
        print(jsonlib.dumps(parts))
        return
    console = output()
    if run.margin:
        console.print(margin_table(run.margin))
        console.print(" ".join(sentences(run.margin)), soft_wrap=True)
    console.print("\nCompared with the base, prompt by prompt", style="italic")
    found = comparisons(run.results, run.refusal, run.capability)
    for one in found:
        console.print(
            f"{name(one.model)}: {one.what}: {difference(one.difference)}", soft_wrap=True
        )
    console.print(counted(found), soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)
