"""Everything there is to know of a finished run's models beyond the attacks, part by part.

A part that is done is not done again; a data set that cannot be had leaves its place empty and says
why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from es2.attacks.push import Push
from es2.capability.lm_eval import harness_version, load_tasks
from es2.capability.over_refusal import load_set
from es2.data.fitting import spread
from es2.data.questions import fingerprints, own_questions
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.judges import Means, make, make_all
from es2.judges.endpoint import Client, Endpoint
from es2.judges.refusal import KEYWORDS
from es2.pipeline.answering import half, measure_answers
from es2.pipeline.asked import check_asked, check_prompts
from es2.pipeline.capability import Asking, measure_capability
from es2.pipeline.experiment import Experiment, evaluated_prompts, fitted_prompts
from es2.pipeline.judging import judge_run
from es2.pipeline.leaks import check_leaks
from es2.pipeline.margin import measure_margins
from es2.pipeline.run import drifting, write_results
from es2.progress import console
from es2.report.build import build
from es2.results.answers import AnswerFile
from es2.results.over_refusal import over_refusal
from es2.results.store import read_attempts, read_json, write_json

OVER_REFUSAL = "over_refusal.json"

OFFLINE = ("rules", "refusal", *(f"keywords:{name}" for name in KEYWORDS))
"""Judges that need nothing but the run."""


@dataclass(frozen=True)
class Evaluation:
    """What to measure.

    Attributes:
        sets: over-refusal sets: `borderline`, `structured`, `xstest`, `or-bench`, or a file of
            labelled prompts or of questions.
        answer_tokens: length of an answer to them.
        questions: a file of questions in MMLU-Pro's format; None for none.
        gpqa: the user's own copy of GPQA; None for none.
        tasks: of lm-evaluation-harness.
        limit: at most so many prompts of each half of a set and items of each task; None for all.
        push: directions and sizes of the safety margin's sweep.
        pushed: test prompts to push.
        judges: that read the attacks' attempts besides, those that es2 list judges tells; each by its
            own model or rules, one after the other.
        endpoint: the chat model that judges by rubric; null for none.
        force: measure on prompts that were fitted on too; the results say so.
    """

    sets: tuple[str, ...] = ("borderline", "structured", "xstest")
    answer_tokens: int = 24
    questions: Path | None = None
    gpqa: str | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    push: Push = field(default_factory=Push)
    pushed: int = 36
    judges: tuple[str, ...] = OFFLINE
    endpoint: Endpoint | None = None
    force: bool = False


def evaluate(experiment: Experiment, asked: Evaluation) -> Path:
    """Measures drift, over-refusal, capability and the margin of a run's models; then reports.

    Returns:
        the run folder.

    Raises:
        Es2Error: if evaluation prompts are copies of prompts fitted on, unless forced; if two sets
            have one name, or the run holds answers to other prompts of a set of that name.
    """
    if asked.questions or asked.gpqa or asked.tasks:
        harness_version()  # what is missing is told before hours have gone by
    folder = experiment.folder
    absent: dict[str, str] = {}
    sets: dict[str, list[Prompt]] = {}
    for source in asked.sets:
        if set_name(source) in sets:
            raise Es2Error(
                f"--sets {source}: two sets are called {set_name(source)}; rename a file"
            )
        try:
            sets[set_name(source)] = load_set(source, asked.limit)
        except Es2Error as error:
            absent[source] = str(error)
            console.print(f"left out: {source}: {error}", style="yellow", markup=False)
    texts = {name: [prompt.text for prompt in prompts] for name, prompts in sets.items()}
    evaluated = evaluated_prompts(experiment.prompts) | texts
    leaks = check_leaks(evaluated, fitted_prompts(experiment.prompts), asked.force)
    answered = read_attempts(folder.path / "over_refusal")
    for name, prompts in sets.items():
        own = [record for record in answered if record["setting"] == name]
        check_prompts(own, prompts, list(map(half, prompts)), f"{name} prompts")
    # Sets that were asked before, and are not now, are in the results still.
    leaks += [old for old in folder.record.get("overlap", []) if old["a"] not in evaluated]
    folder.note(overlap=leaks, absent=absent)
    parts: dict[str, Callable[[], None]] = {
        "drift": lambda: drifting_by_span(experiment),
        "over-refusal": lambda: refusing(experiment, asked, sets),
        "capability": lambda: knowing(experiment, asked),
        "judges": lambda: judging(experiment, asked.judges, asked.endpoint),
        "margin": lambda: pushing(experiment, asked),
    }
    for name, part in parts.items():
        with folder.stage(f"evaluate: {name}"):
            part()
    build(folder.path)
    return folder.path


def set_name(source: str) -> str:
    """A set's name in results: a file's is its stem."""
    return Path(source).stem if Path(source).suffix else source


def drifting_by_span(experiment: Experiment) -> None:
    """Drift, where the run's own is missing or from before it was told span by span.

    Results are written anew in any case: leaks that were just let through are among their notes.
    """
    path = experiment.folder.path / "drift.json"
    if experiment.recipe.defence and not (path.is_file() and "response" in read_json(path)):
        drifting(experiment)
    write_results(experiment)


def refusing(experiment: Experiment, asked: Evaluation, sets: dict[str, list[Prompt]]) -> None:
    """Refusals of safe and of unsafe prompts: `over_refusal.json`."""
    run = experiment.folder.path / "over_refusal"
    check_asked(run / "asked.json", {"answer_tokens": asked.answer_tokens})
    judge = experiment.judge
    for name, prompts in sets.items():
        halves = [half(prompt) for prompt in prompts]
        for model, victim in experiment.victims.items():
            tokens = asked.answer_tokens
            measure_answers(model, victim.chat, judge, prompts, halves, tokens, run, setting=name)
    write_over_refusal(experiment.folder.path)


def write_over_refusal(run: Path) -> None:
    """`over_refusal.json` from the answers to the sets."""
    write_json(run / OVER_REFUSAL, over_refusal(read_attempts(run / "over_refusal")))


def knowing(experiment: Experiment, asked: Evaluation) -> None:
    """What the models know: `capability.json`. Without tasks and questions there is nothing to do.

    Raises:
        Es2Error: if the folder holds answers to other questions, or the harness is not installed.
    """
    questions = own_questions(asked.questions, asked.gpqa, asked.limit)
    if not (questions or asked.tasks):
        return
    run = experiment.folder.path
    plan = {"tasks": list(asked.tasks), "files": fingerprints(questions), "limit": asked.limit}
    check_asked(run / "capability" / "asked.json", plan)
    measure_capability(
        {name: name for name in experiment.victims},
        lambda name: experiment.victims[name].chat,
        load_tasks(asked.tasks, questions),
        Asking(asked.limit),
        run,
        plan,
    )


def judging(
    experiment: Experiment, judges: Sequence[str] = OFFLINE, endpoint: Endpoint | None = None
) -> None:
    """Other judges' readings of the attacks' attempts: `judges.json`.

    Raises:
        Es2Error: if there is no such judge, or it needs an endpoint and there is none.
    """
    run = experiment.folder.path
    answers = AnswerFile(run)
    client = None if endpoint is None else Client(endpoint, answers)
    means = Means(coherence=lambda: experiment.judge, client=client)
    make_all(judges, means)  # a mistake in a name is told before any work
    judge_run(run, (make(name, means) for name in judges), answers)


def pushing(experiment: Experiment, asked: Evaluation) -> None:
    """The safety margin on test prompts: `margin.json`."""
    prompts = spread(experiment.prompts.harmful.test, asked.pushed)
    plan = {"push": asdict(asked.push), "prompts": [prompt.id for prompt in prompts]}
    check_asked(experiment.folder.path / "margin" / "push.json", plan)
    measure_margins(
        experiment.victims, experiment.judge, asked.push, prompts, experiment.folder.path
    )
