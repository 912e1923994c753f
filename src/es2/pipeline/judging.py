"""Several judges over one run: attempts in, `verdicts.jsonl` and `judges.json` out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from es2.data.fitting import spread
from es2.errors import Es2Error
from es2.judges.base import Judge, Opinion
from es2.judges.offline import Rules
from es2.progress import bar, console
from es2.results.answers import AnswerFile
from es2.results.opinions import (
    JUDGES_FILE,
    VERDICTS_FILE,
    Judges,
    Key,
    attempt_key,
    settled,
    verdict_record,
)
from es2.results.panel import panel
from es2.results.store import append_records, read_attempts, read_records, write_json

_PORTION = 64
"""Completions that a kill can cost a judge."""


def judge_run(
    run: Path, judges: Iterable[Judge], answers: AnswerFile, limit: int | None = None
) -> Judges:
    """Asks judges about the attacks' attempts of a run, and sums up what all of them have said.

    What a judge of the same version has said already is not asked again. Answers to harmless prompts
    are left out: most judges here presume that the request is harmful.

    Args:
        run: the run folder.
        judges: whom to ask, one after the other; made one by one, no two need memory at once.
        answers: the run's answers from endpoints.
        limit: at most so many attempts, spread evenly over the run.

    Raises:
        Es2Error: if the run holds no attempts, or they are damaged.
    """
    try:
        found = {attempt_key(r): r for r in read_attempts(run) if r["kind"] == "attack"}
    except (KeyError, TypeError, AttributeError) as error:
        raise Es2Error(f"{run}/attempts.jsonl: a record is damaged ({error!r})") from error
    if not found:
        raise Es2Error(f"{run} holds no attempts to judge; attack a model with --out {run} first")
    keys = list(found) if limit is None else spread(list(found), limit)
    asked = {}
    for judge in judges:
        asked[judge.name] = judge.version
        _ask(run, judge, {key: found[key] for key in keys})
    lines = read_records(run / VERDICTS_FILE)
    result = panel(lines, found.keys(), answers.spending(), asked)
    write_json(run / JUDGES_FILE, result)
    return result


def _ask(run: Path, judge: Judge, attempts: dict[Key, dict[str, Any]]) -> None:
    path = run / VERDICTS_FILE
    known = {
        attempt_key(line): line
        for line in read_records(path)
        if (line["judge"], line["version"]) == (judge.name, judge.version)
    }

    def note(opinions: dict[Key, Opinion]) -> None:
        lines = {key: verdict_record(key, given) for key, given in opinions.items()}
        append_records(path, [line for key, line in lines.items() if known.get(key) != line])

    left = {key: of for key, of in attempts.items() if not settled(known.get(key, _NOTHING))}
    if isinstance(judge, Rules):  # a run was judged by these rules when it was made
        own = {key: of for key, of in left.items() if _version(of) == judge.version}
        note({key: judge.opinion(of["judgement"]) for key, of in own.items()})
        left = {key: of for key, of in left.items() if key not in own}
    # Many completions are the same refusal of the same prompt, word for word.
    same: dict[tuple[str, str], list[Key]] = {}
    for key, of in left.items():
        same.setdefault((of["prompt"], of["completion"]), []).append(key)
    if not same:
        return
    pairs = list(same)
    missing: str | None = None
    with bar(f"judging: {judge.name}", len(pairs)) as advance:
        for start in range(0, len(pairs), _PORTION):
            portion = pairs[start : start + _PORTION]
            prompts, completions = zip(*portion, strict=True)
            given = judge(prompts, completions, advance)
            opinions = zip(portion, given, strict=True)
            note({key: one for pair, one in opinions for key in same[pair]})
            missing = missing or next((one.error for one in given if one.error), None)
    if missing:
        console.print(f"{judge.name}: {missing}", style="yellow", highlight=False, markup=False)


_NOTHING: dict[str, Any] = {"harmful": None, "raw": ""}


def _version(attempt: dict[str, Any]) -> object:
    judgement = attempt.get("judgement")
    return judgement.get("version") if isinstance(judgement, dict) else None
