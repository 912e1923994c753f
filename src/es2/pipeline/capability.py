"""Measures what models know: every (model, task) pair once, and again only what a kill left open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from es2.capability.lm_eval import Task, evaluate, harness_version
from es2.models.loading import ChatModel
from es2.results.capability import (
    ANSWERS,
    CAPABILITY,
    CapabilityResults,
    benchmarks,
)
from es2.results.store import append_records, read_records, write_json


@dataclass(frozen=True)
class Asking:
    """How the questions are put.

    Attributes:
        limit: at most so many items a task.
        chat_template: put prompts into the model's chat template.
        batch_size: answers that are written at a time.
    """

    limit: int | None = None
    chat_template: bool = True
    batch_size: int = 8


def measure_capability(
    models: Mapping[str, str],
    load: Callable[[str], ChatModel],
    tasks: Sequence[Task],
    asking: Asking,
    folder: Path,
    settings: Mapping[str, Any],
) -> CapabilityResults:
    """Measures every model on every task; answers go to `capability.jsonl` as a task is done.

    One model is in memory at a time. Pairs whose answers are all in the folder are not measured
    again.

    Args:
        models: each model's source by its name in the records, `base` before `defended`.
        load: loads a source.
        tasks: what to measure.
        asking: how.
        folder: where the records are, or will be.
        settings: what was asked for, kept in `capability.json`.
    """
    results = CapabilityResults(
        harness=harness_version(), models=dict(models), settings=dict(settings)
    )
    write_json(folder / CAPABILITY, results)
    path = folder / ANSWERS
    done = {(r["model"], r["task"], r["index"]) for r in read_records(path)}
    for name, source in models.items():
        open_tasks = [
            task
            for task in tasks
            if sum((name, task.name) == key[:2] for key in done) < task.items(asking.limit)
        ]
        if not open_tasks:
            continue
        chat = load(source)
        for task in open_tasks:
            items = evaluate(chat, task, asking.limit, asking.chat_template, asking.batch_size)
            which = {"model": name, "task": task.name, "benchmark": task.benchmark}
            append_records(
                path,
                [
                    which | {"shots": task.shots} | asdict(item)
                    for item in items
                    if (name, task.name, item.index) not in done
                ],
            )
    results = results.model_copy(update={"benchmarks": benchmarks(read_records(path))})
    write_json(folder / CAPABILITY, results)
    return results
