"""`es2 evaluate`: what a finished run's defence cost, and what it is worth, beyond the attacks."""

from __future__ import annotations

from pathlib import Path

import tyro

from es2.attacks.push import Push
from es2.commands.options import named_values
from es2.config import make_attacks
from es2.errors import Es2Error
from es2.pipeline.evaluate import Evaluation
from es2.pipeline.evaluate import evaluate as evaluate_run
from es2.pipeline.experiment import reopen
from es2.pipeline.show import show_evaluation


def evaluate(
    run: Path,
    sets: tuple[str, ...] = ("borderline", "structured", "xstest"),
    answer_tokens: int = 24,
    questions: Path | None = None,
    gpqa: str | None = None,
    tasks: tuple[str, ...] = (),
    limit: int | None = None,
    pushed: int = 36,
    push: tuple[str, ...] = (),
    force: bool = False,
    json: bool = False,
) -> None:
    """Measures drift, over-refusal, capability and the safety margin of a run's models.

    What is done is not done again, so that parts may be added later. The report is written anew.

    Args:
        run: the run's folder, such as runs/demo.
        sets: over-refusal sets: borderline, structured, xstest, or-bench, a file whose label column
            says which prompts are safe and unsafe, or one of questions in MMLU-Pro's format.
        answer_tokens: length of an answer to them.
        questions: a JSONL file of questions in MMLU-Pro's format, measured by log-likelihood.
        gpqa: your own copy of GPQA, a CSV or JSONL file or hub:Idavidrein/gpqa:gpqa_main, likewise.
        tasks: tasks or groups of lm-evaluation-harness, such as mmlu_pro leaderboard.
        limit: at most so many prompts of each half of a set and items of each task, for a quick look.
        pushed: harmful test prompts to push for the safety margin, spread evenly.
        push: settings of the margin's sweep, as NAME=VALUE, such as norms=[0.02,0.1,0.5].
        force: measure on prompts that were fitted on too; the results say so.
        json: print the results as JSON on standard output, and nothing else.
    """
    for name, value in (("limit", limit), ("pushed", pushed), ("answer-tokens", answer_tokens)):
        if value is not None and value < 1:
            raise Es2Error(f"--{name} {value}: has to be at least 1")
    experiment = reopen(run)
    sweep = make_attacks({"push": {"seed": experiment.recipe.seed} | named_values(push)})[0]
    assert isinstance(sweep, Push)
    asked = Evaluation(
        sets=sets,
        answer_tokens=answer_tokens,
        questions=questions,
        gpqa=gpqa,
        tasks=tasks,
        limit=limit,
        push=sweep,
        pushed=pushed,
        force=force,
    )
    show_evaluation(evaluate_run(experiment, asked), json)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(evaluate, args=argv, prog="es2 evaluate")
