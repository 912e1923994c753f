"""A run folder to give away: every rate, verdict and number, and no text that was asked or answered.

Reviewers can compute every table and paired test from it again, and gather it with other runs; whoever
finds it learns no answer to a harmful prompt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from es2.errors import Es2Error
from es2.pipeline.margin import MARGIN
from es2.results.capability import ANSWERS, CAPABILITY
from es2.results.comparison import COMPARISON
from es2.results.opinions import attempt_key
from es2.results.store import ATTEMPTS, RESULTS, read_records, write_text

WHOLE = (
    *("config.yaml", "run.json", "layers.json", "embeddings.json", "metrics.jsonl", "drift.json"),
    *(RESULTS, COMPARISON, MARGIN, "over_refusal.json", "judges.json", CAPABILITY, ANSWERS),
)
"""Files without a prompt or an answer to one; of capability's questions they hold the choice."""

DRAWN = ("*.svg", "tables.md")
"""A comparison's figures and tables."""

STRIPPED = (ATTEMPTS, f"over_refusal/{ATTEMPTS}", f"margin/{ATTEMPTS}")

KEPT = (
    *("defence", "kind", "attack", "setting", "threat", "prompt_id", "seed"),
    *("norm", "relative_norm", "rule", "judgement"),
)


def publish(run: Path, out: Path) -> Path:
    """Copies what a run or comparison measured, with a hash in place of every completion.

    Raises:
        Es2Error: if the run has no results yet, or the folder is there already.
    """
    if not (run / RESULTS).is_file():
        raise Es2Error(f"{run}: holds no {RESULTS}; give the folder of a finished run")
    if out.exists():
        raise Es2Error(f"{out} is there already; give another --out")
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    for file in STRIPPED:
        if records := read_records(run / file):
            lines = [json.dumps(without_texts(record)) for record in records]
            write_text(draft / file, "\n".join(lines) + "\n")
    drawn = [path.name for pattern in DRAWN for path in run.glob(pattern)]
    for file in (*WHOLE, *drawn):
        if (run / file).is_file():
            shutil.copyfile(run / file, draft / file)
    draft.rename(out)
    return out


def without_texts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `attempts.jsonl` without prompt, completion and what an attack made of the prompt."""
    details = {
        name: value
        for name, value in (record.get("details") or {}).items()
        if isinstance(value, int | float) or name in ("category", "answer")
    }
    kept = {name: record[name] for name in KEPT if name in record}
    return {**kept, "details": details, "completion_sha": attempt_key(record)[-1]}
