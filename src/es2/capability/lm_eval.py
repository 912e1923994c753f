"""Capability benchmarks, run by lm-evaluation-harness, item by item.

The harness (Gao et al., doi 10.5281/zenodo.10256836) has MMLU-Pro, GPQA and the Open LLM Leaderboard as
tasks of its own, fetched from the Hub. A user's own file of questions becomes one more task, which
needs no network: zero-shot, options lettered as in the harness's `leaderboard_mmlu_pro`, the letter
with the greatest log-likelihood taken as the answer.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from es2.data.questions import LETTERS, Question, shown
from es2.errors import Es2Error
from es2.models.loading import ChatModel

SEED = 1234
"""Of what the harness draws: its default for few-shot examples."""


@dataclass(frozen=True)
class Task:
    """One task of the harness.

    Attributes:
        name: its name.
        benchmark: the group it is part of, where the harness pools that group; else its own name.
        subject: what it is called within the benchmark, or "" where its items say.
        source: the harness's object.
    """

    name: str
    benchmark: str
    subject: str
    source: Any

    @property
    def generates(self) -> bool:
        """Whether answers are written, and not only scored."""
        return self.source.OUTPUT_TYPE == "generate_until"

    @property
    def shots(self) -> int:
        """Solved examples before every question."""
        return self.source.get_config("num_fewshot") or 0

    def items(self, limit: int | None) -> int:
        """How many items are measured under a limit."""
        count = len(self.source.eval_docs)
        return count if limit is None else min(limit, count)


@dataclass(frozen=True)
class Item:
    """One model's answer to one item.

    Attributes:
        index: its place in the task.
        item: a hash of the question as it was put, choices in their order; two models' answers are
            compared only where it is the same.
        subject: its topic within the benchmark.
        metric: the task's first metric, which says what counts as correct.
        correct: whether the answer is.
        choice: the letter or text chosen; None where none could be read.
        loglikelihoods: of the choices, in nats; None where the answer was written.
        unparsed: whether no answer could be read out of what was written; None where that cannot
            happen, or the task does not tell.
    """

    index: int
    item: str
    subject: str
    metric: str
    correct: bool
    choice: str | None
    loglikelihoods: list[float] | None
    unparsed: bool | None


def harness_version() -> str:
    """The version of lm-evaluation-harness.

    Raises:
        Es2Error: if it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise Es2Error(
            "lm-evaluation-harness is not installed; add it with pip install 'es2[lm-eval]'"
        )
    return version("lm_eval")


def load_tasks(
    names: Sequence[str],
    questions: Mapping[str, Sequence[Question]],
    folder: Path | None = None,
) -> list[Task]:
    """The harness's tasks of these names, and one of every list of questions.

    Args:
        names: tasks, groups or tags of the harness.
        questions: questions by the name of the task that they are to make up.
        folder: more tasks in the harness's YAML, found by name as its own are.

    Raises:
        Es2Error: no harness, no such task, a task without right and wrong answers, or its data
            cannot be loaded.
    """
    harness_version()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own defaults
    if folder is not None and not folder.is_dir():
        raise Es2Error(f"{folder}: no such folder of tasks")
    tasks: list[Task] = []
    for name in names:
        manager = _manager(folder)
        if name not in manager.all_tasks:
            raise Es2Error(
                f"lm-evaluation-harness has no task {name!r}; lm-eval ls tasks lists those there are"
            )
        random.seed(SEED)  # some tasks shuffle choices with it as they load
        try:
            loaded = manager.load([name])
        # Data may be missing, gated or out of reach, and tasks need packages of their own.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Es2Error(
                f"task {name}: cannot be loaded ({reason}); without the Hub, use a file of your own"
            ) from error
        tasks += _of_one_name(loaded)
    tasks += [_of_questions(name, asked) for name, asked in questions.items()]
    twice = [task.name for task in tasks if sum(task.name == other.name for other in tasks) > 1]
    if twice:
        raise Es2Error(f"task {twice[0]} is asked for twice; name it once, or rename the file")
    return tasks


@cache
def _manager(folder: Path | None) -> Any:
    """The harness's index of tasks; it reads thousands of files, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))


def _of_one_name(loaded: Mapping[str, Any]) -> Iterator[Task]:
    pools: dict[str, str] = {}
    for group in loaded.get("groups", {}).values():
        # A group of groups, such as the leaderboard, has parts that are not of one kind.
        if group.aggregate_metric_list and not group.get_all_groups():
            pools |= {task.task_name: group.name for task in group.get_all_tasks()}
    for name, source in loaded["tasks"].items():
        if source.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
            raise Es2Error(f"task {name} has no right and wrong answers, so es2 cannot measure it")
        if source.get_config("num_fewshot") is None:
            source.set_config(key="num_fewshot", value=0)
        subject = source.get_config("task_alias") or name if name in pools else ""
        yield Task(name, pools.get(name, name), subject, source)


def _of_questions(name: str, questions: Sequence[Question]) -> Task:
    import datasets
    from lm_eval.tasks import TaskManager

    rows = [
        {
            "question": question.text,
            "options": list(question.options),
            "answer": question.answer,
            "subject": question.subject,
        }
        for question in questions
    ]
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: shown(row["question"], row["options"]),
        "doc_to_choice": lambda row: list(LETTERS[: len(row["options"])]),
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    loaded = TaskManager(include_defaults=False).load([config])
    return Task(name, name, "", loaded["tasks"][name])


def evaluate(
    chat: ChatModel,
    task: Task,
    limit: int | None = None,
    chat_template: bool = True,
    batch_size: int = 8,
) -> list[Item]:
    """One model's answers to a task's items.

    Args:
        chat: the model.
        task: the task.
        limit: at most the task's first so many items.
        chat_template: put the prompt, and few-shot examples as earlier turns, into the template.
        batch_size: answers that are written at a time.

    Raises:
        Es2Error: an item is not simply right or wrong, or memory does not suffice.
    """
    from lm_eval.evaluator import evaluate as run

    from es2.capability.harness_model import HarnessModel

    # Both models get the same examples: drawing goes on where it stopped unless it is seeded anew.
    task.source.set_fewshot_seed(SEED)
    found = run(
        HarnessModel(chat, chat_template, batch_size),
        {"tasks": {task.name: task.source}},
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    samples = found["samples"][task.name]
    first = samples[0]["filter"]  # a task may read answers in several ways
    fallbacks = _fallbacks(task.source, first)
    items = [_item(task, s, fallbacks) for s in samples if s["filter"] == first]
    return sorted(items, key=lambda item: item.index)


def _item(task: Task, sample: Mapping[str, Any], fallbacks: frozenset[str]) -> Item:
    metric = sample["metrics"][0]
    score = sample[metric]
    if isinstance(score, Sequence) or float(score) not in (0.0, 1.0):
        raise Es2Error(
            f"task {task.name}: {metric} is not 0 or 1 for every item, so es2 cannot measure it"
        )
    scores = choice = unparsed = None
    if task.generates:
        read = sample["filtered_resps"][0]
        answer = str(read[0] if isinstance(read, list) else read)
        unparsed = answer in fallbacks if fallbacks else None
        choice = None if unparsed else answer
    else:
        choices = task.source.doc_to_choice(sample["doc"])
        scores = [float(score) for score, _ in sample["filtered_resps"]][: len(choices)]
        choice = str(choices[max(range(len(scores)), key=scores.__getitem__)])
    return Item(
        index=int(sample["doc_id"]),
        item=str(sample["doc_hash"]),
        subject=task.subject or str(sample["doc"].get("subject") or ""),
        metric=metric,
        correct=bool(score),
        choice=choice,
        loglikelihoods=scores,
        unparsed=unparsed,
    )


def _fallbacks(source: Any, name: str) -> frozenset[str]:
    """What a task's filters leave where they find no answer, such as `[invalid]`."""
    steps = [
        step() for ensemble in source._filters if ensemble.name == name for step in ensemble.filters
    ]
    return frozenset(step.fallback for step in steps if hasattr(step, "fallback"))
