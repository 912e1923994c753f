"""A finished run read again by this version's own rules: its answers stay, no model answers anew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from es2.errors import Es2Error
from es2.judges.base import VERSION, Judgement
from es2.judges.partial import answer_kind
from es2.judges.remembered import Remembering
from es2.pipeline.evaluate import OVER_REFUSAL, judging, write_over_refusal
from es2.pipeline.experiment import Experiment
from es2.pipeline.margin import MARGIN, write_margins
from es2.pipeline.run import write_results
from es2.progress import bar
from es2.report.build import build
from es2.results.comparison import COMPARISON
from es2.results.opinions import JUDGES_FILE
from es2.results.store import (
    ATTEMPTS,
    RESULTS,
    read_attempts,
    read_json,
    write_records,
)

_PORTION = 128
"""Answers between two steps of the progress bar."""


def rejudge(experiment: Experiment) -> Path:
    """Limits, verdicts, results and report anew; a kill leaves files that the next call finishes.

    Returns:
        the run folder.

    Raises:
        Es2Error: if the run has no results yet, or is a comparison.
    """
    folder = experiment.folder
    run = folder.path
    if not (run / RESULTS).is_file():
        raise Es2Error(f"{run} has no results yet; go on with es2 run --resume")
    if (run / COMPARISON).is_file():
        raise Es2Error(
            f"{run}: a comparison; judge its members again, then gather with es2 compare"
        )
    with folder.stage("judge again"):
        folder.note(judge=None)
        judge = Remembering(experiment.judge)  # pushed a little, a model says what it says unpushed
        for part in (run, run / "over_refusal", run / "margin"):
            if (part / ATTEMPTS).is_file():
                reread(part, judge)
        write_results(experiment)
        if (run / OVER_REFUSAL).is_file():
            write_over_refusal(run)
        if (run / MARGIN).is_file():
            write_margins(run, read_json(run / "margin" / "push.json")["push"]["seed"])
        if (run / JUDGES_FILE).is_file():
            judging(experiment)
    build(run)
    return run


def reread(part: Path, judge: Remembering) -> None:
    """Gives every attempt of a folder a new judgement, all of them or none.

    Args:
        part: the folder with `attempts.jsonl`.
        judge: the undefended model and its limits, and what it has said of other folders.
    """
    records = read_attempts(part)
    judged: list[dict[str, Any]] = []
    with bar(f"{part.name}: {len(records)} answers by {VERSION}", len(records)) as advance:
        for start in range(0, len(records), _PORTION):
            some = records[start : start + _PORTION]
            found = judge([r["prompt"] for r in some], [r["completion"] for r in some])
            judged += map(_with, some, found)
            advance(len(some))
    write_records(part / ATTEMPTS, judged)


def _with(record: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    changed = {**record, "judgement": asdict(judgement)}
    if "answer" in record.get("details", {}):  # refused in full or in part, see measure_answers
        answer = answer_kind(judgement.verdict, record["completion"])
        changed["details"] = {**record["details"], "answer": answer}
    return changed
