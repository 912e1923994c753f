"""A finished run read again by this version's own rules: its answers stay, no model answers anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from es2.errors import Es2Error
from es2.judges.base import VERSION, Judgement
from es2.judges.coherence import judge
from es2.judges.partial import answer_kind
from es2.pipeline.evaluate import OVER_REFUSAL, judging
from es2.pipeline.experiment import Experiment
from es2.pipeline.margin import MARGIN
from es2.pipeline.run import write_results
from es2.progress import bar
from es2.report.build import build
from es2.results.margin import margins
from es2.results.opinions import JUDGES_FILE
from es2.results.over_refusal import over_refusal
from es2.results.store import (
    ATTEMPTS,
    RESULTS,
    read_attempts,
    read_json,
    write_json,
    write_records,
)

Judging = Callable[[Sequence[str], Sequence[str], Callable[[int], None]], list[Judgement]]


def rejudge(experiment: Experiment) -> Path:
    """Limits, verdicts, results and report anew; a kill leaves files that the next call finishes.

    Returns:
        the run folder.

    Raises:
        Es2Error: if the run has no results yet.
    """
    folder = experiment.folder
    run = folder.path
    if not (run / RESULTS).is_file():
        raise Es2Error(f"{run} has no results yet; go on with es2 run --resume")
    with folder.stage("judge again"):
        folder.note(judge=None)
        base, limits = experiment.judge.base, experiment.judge.limits

        def again(
            prompts: Sequence[str], completions: Sequence[str], progress: Callable[[int], None]
        ) -> list[Judgement]:
            return judge(base, prompts, completions, limits, progress)

        for part in (run, run / "over_refusal", run / "margin"):
            if (part / ATTEMPTS).is_file():
                reread(part, again)
        write_results(experiment)
        if (run / OVER_REFUSAL).is_file():
            write_json(run / OVER_REFUSAL, over_refusal(read_attempts(run / "over_refusal")))
        if (run / MARGIN).is_file():
            seed = read_json(run / "margin" / "push.json")["push"]["seed"]
            write_json(run / MARGIN, margins(read_attempts(run / "margin"), seed))
        if (run / JUDGES_FILE).is_file():
            judging(experiment)
    build(run)
    return run


def reread(part: Path, judging: Judging) -> None:
    """Gives every attempt of a folder a new judgement, all of them or none.

    Args:
        part: the folder with `attempts.jsonl`.
        judging: a verdict on every completion, from prompts, completions and who is told of progress.
    """
    records = read_attempts(part)
    pairs = list(dict.fromkeys((record["prompt"], record["completion"]) for record in records))
    with bar(f"{part.name}: {len(records)} answers by {VERSION}", len(pairs)) as advance:
        found = judging([prompt for prompt, _ in pairs], [text for _, text in pairs], advance)
    given = dict(zip(pairs, found, strict=True))
    write_records(part / ATTEMPTS, [_with(record, given) for record in records])


def _with(record: dict[str, Any], given: dict[tuple[str, str], Judgement]) -> dict[str, Any]:
    text = record["completion"]
    judgement = given[record["prompt"], text]
    changed = {**record, "judgement": asdict(judgement)}
    if "answer" in record.get("details", {}):  # refused in full or in part, see measure_answers
        answer = answer_kind(judgement.verdict, text)
        changed["details"] = {**record["details"], "answer": answer}
    return changed
