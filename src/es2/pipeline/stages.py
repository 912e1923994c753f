"""What a run consists of, counted before it is run: its stages and the tokens each will take.

Counts are at most: searches that end early, answers that stop and training that is stopped take less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from es2.attacks.base import expected_work
from es2.capability.over_refusal import load_set
from es2.capability.sizes import TASKS
from es2.config import Recipe, make_attacks, make_defence
from es2.data.fitting import FitPrompts
from es2.data.published import SIZES, stand_ins
from es2.data.questions import own_questions
from es2.data.sources import Prompt, load_prompts
from es2.defences.base import Defence
from es2.defences.base import expected_work as defence_work
from es2.defences.trainer import TrainSettings
from es2.errors import Es2Error
from es2.models.work import Lengths, Work, answering, reading
from es2.pipeline.capability import Asking
from es2.pipeline.evaluate import Evaluation
from es2.pipeline.experiment import Prompts
from es2.pipeline.harden import Guard
from es2.pipeline.trial import Trying

CALIBRATION = (24, 48)
"""Prompts that the judge is calibrated on, and tokens of an answer."""

NEUTRAL = 5
"""Tokens of the judge's neutral prompt."""

OPTIONS = 60
"""Tokens of a question's letters and the word before the answer."""


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes:
        name: as shown.
        work: what it takes.
        models: that are in memory at once.
        train: the training loop's settings, where it trains.
        draft: the small model that it needs besides.
    """

    name: str
    work: Work
    models: int = 1
    train: TrainSettings | None = None
    draft: str = ""


@dataclass(frozen=True)
class Counting:
    """What stages are counted with.

    Attributes:
        prompts: all of the run's.
        lengths: of templated prompts, in tokens.
        rows: of a batch without gradient.
        note: is told what was assumed.
        load: loads prompts, see `available`.
    """

    prompts: Prompts
    lengths: Lengths
    rows: int
    note: Callable[[str], object]
    load: Callable[..., list[Prompt]] = load_prompts

    def own(self, prompts: Sequence[Prompt] | Sequence[str]) -> float:
        """Tokens of a templated prompt that are its own, on average."""
        texts = [one.text if isinstance(one, Prompt) else one for one in prompts]
        return self.lengths.mean(texts) + self.lengths.tail

    def states(self, fit: FitPrompts) -> Work:
        """Reading prompts of both classes, to fit on and held out."""
        groups = (fit.harmful, fit.harmless, fit.held_harmful, fit.held_harmless)
        return total(
            reading(len(group), self.own(group), self.rows, self.lengths.head) for group in groups
        )

    def judged(self, answers: float, own: float, new: float) -> Work:
        """The undefended model reads each answer after its prompt and after a neutral one."""
        after = reading(answers, own + new, self.rows, self.lengths.head)
        return after + reading(answers, NEUTRAL + self.lengths.tail + new, self.rows)

    def answered(self, prompts: Sequence[Prompt], new: float) -> Work:
        """Prompts answered, and the answers judged."""
        own = self.own(prompts)
        answers = answering(len(prompts), own, new, self.rows, self.lengths.head)
        return answers + self.judged(len(prompts), own, new)


def total(parts: Iterator[Work] | Sequence[Work]) -> Work:
    """One after the other."""
    return sum(parts, Work())


def available(note: Callable[[str], object]) -> Callable[..., list[Prompt]]:
    """Loads prompts as `load_prompts` does; stand-ins of the published number where it cannot."""

    @cache
    def load(source: str, **options: object) -> list[Prompt]:
        try:
            return load_prompts(source, **options)  # type: ignore[arg-type]
        except Es2Error:
            name = source.partition(":")[0]
            if name not in SIZES:
                raise
            found = stand_ins(name)
            note(f"{source} cannot be fetched; taken as {len(found)} prompts of 80 characters")
            return found

    return load


def run_stages(recipe: Recipe, counting: Counting) -> list[Stage]:
    """What `es2 run` does, stage by stage."""
    prompts, lengths, rows = counting.prompts, counting.lengths, counting.rows
    victims = [True] * recipe.base + [False] * bool(recipe.defence)
    many = 1 + bool(recipe.defence)  # the base judges, so it is there beside the defended model
    stages = [Stage("layers", counting.states(prompts.probe_fit))]
    if recipe.defence:
        defence = make_defence(recipe.defence)
        stages.append(hardening(defence, recipe.train, recipe.guard, counting))
        borderline = prompts.borderline.validation
        seen = counting.states(prompts.probe_fit) + reading(
            len(borderline) * len(victims), counting.own(borderline), rows, lengths.head
        )
        stages.append(Stage("geometry", seen, many))
    calibration, tokens = CALIBRATION
    held = prompts.fit.held_harmless[:calibration]
    own = counting.own(held)
    judge = answering(len(held), own, tokens, rows, lengths.head)
    stages.append(Stage("judge", judge + counting.judged(len(held), own, tokens), many))
    for attack in make_attacks(recipe.attacks):
        aimed = min(len(prompts.harmful.test), recipe.limits.get(attack.name, 10**9))
        new = getattr(attack, "max_new_tokens", 0)
        one = expected_work(attack, lengths, aimed, rows) + counting.judged(
            aimed * len(attack.settings()), lengths.own, new
        )
        times = len(victims) + (attack.name in recipe.stale and bool(recipe.defence))
        draft = getattr(attack, "draft", "")
        stages.append(Stage(f"attack: {attack.name}", one.times(times), many, draft=draft))
    cost = total(
        counting.answered(group, recipe.answer_tokens)
        for group in (prompts.harmless.test, prompts.borderline.test, prompts.structured.test)
    ).times(len(victims))
    if recipe.defence:
        cost += drifting(prompts.harmless.test, recipe.answer_tokens, counting)
    stages.append(Stage("cost", cost, many))
    return stages


def hardening(defence: Defence, settings: TrainSettings, guard: Guard, counting: Counting) -> Stage:
    """Preparing, training and validating a defence."""
    fit, lengths, rows = counting.prompts.fit, counting.lengths, counting.rows
    # Harmless prompts over several lines are far longer than harmful ones; a batch is half of each.
    both = (lengths.mean(fit.harmful) + lengths.mean(fit.harmless)) / 2
    lengths = replace(lengths, prompt=both)
    if not hasattr(defence, "expected"):
        counting.note(f"{defence.name} does not say what it takes; taken as two classes a step")
    counts = len(fit.harmful), len(fit.harmless)
    work = defence_work(defence, settings, lengths, *counts, rows)
    if settings.validate_every:
        times = 1 + -(-settings.steps // settings.validate_every)
        groups = (fit.held_harmful, *fit.held_safe.values())
        for number, group in enumerate(groups):
            count, own = min(guard.prompts, len(group)), counting.own(group)
            one = answering(count, own, guard.tokens, rows, lengths.head)
            one += counting.judged(count, own, guard.tokens)
            if number < 2:  # distances are between harmful and harmless
                one += reading(count, own, rows, lengths.head)
            work += one.times(times)
    # Training all weights keeps a copy of the model to validate against.
    whole = settings.rank == 0 and settings.validate_every > 0
    return Stage(f"harden: {defence.name}", work, 1 + whole, settings)


def tuning(recipe: Recipe, trials: int, counting: Counting) -> Stage:
    """A study: each trial trains, and is attacked and asked on validation prompts."""
    defence, trying = make_defence(recipe.defence), Trying()
    one = hardening(defence, recipe.train, recipe.guard, counting).work
    lengths, rows, own = counting.lengths, counting.rows, counting.lengths.own
    for attack in trying.attacks:
        one += expected_work(attack, lengths, trying.prompts, rows)
        answers = trying.prompts * len(attack.settings())
        one += counting.judged(answers, own, trying.tokens)
    # Refusals of harmless prompts of three kinds, and drift along the base's answers.
    one += answering(3 * trying.prompts, own, trying.tokens, rows, lengths.head)
    one += reading(trying.prompts, own + trying.tokens, rows, lengths.head)
    return Stage(f"tune: {defence.name}", one.times(trials), 2, recipe.train)


def drifting(prompts: Sequence[Prompt], new: int, counting: Counting) -> Work:
    """The base's answers, read again by both models."""
    own, rows, head = counting.own(prompts), counting.rows, counting.lengths.head
    answers = answering(len(prompts), own, new, rows, head)
    return answers + reading(len(prompts), own + new, rows, head).times(2)


def evaluation_stages(recipe: Recipe, asked: Evaluation, counting: Counting) -> list[Stage]:
    """What `es2 evaluate` does beyond the run."""
    lengths, rows = counting.lengths, counting.rows
    victims, many = recipe.base + bool(recipe.defence), 1 + bool(recipe.defence)
    stages = []
    for source in asked.sets:
        try:
            prompts = load_set(source, asked.limit, counting.load)
        except Es2Error as error:
            counting.note(f"left out: {error}")
            continue
        work = counting.answered(prompts, asked.answer_tokens).times(victims)
        stages.append(Stage(f"over-refusal: {source}", work, many))
    for name, questions in own_questions(asked.questions, asked.gpqa, asked.limit).items():
        texts = [" ".join([question.text, *question.options]) for question in questions]
        work = reading(len(texts), counting.own(texts) + OPTIONS, rows, lengths.head)
        stages.append(Stage(f"capability: {name}", work.times(victims), many))
    for name in asked.tasks:
        if name not in TASKS:
            counting.note(f"left out: {name}, a task whose size is not known")
            continue
        work = TASKS[name].work(asked.limit, Asking().batch_size, rows).times(victims)
        stages.append(Stage(f"capability: {name}", work, many))
    pushed = min(asked.pushed, len(counting.prompts.harmful.test))
    answers = pushed * len(asked.push.settings())
    work = expected_work(asked.push, lengths, pushed, rows)
    work += counting.judged(answers, lengths.own, asked.push.max_new_tokens)
    stages.append(Stage("margin", work.times(victims), many))
    return stages
