"""Over-refusal: which prompts that deserve an answer are declined, beside those that should be.

A set has a safe half, whose prompts look harmful and are not, and may have an unsafe half as its
contrast: a model that declines nothing does well on the safe half alone. Sets: XSTest (Röttger et
al., arXiv 2308.01263), OR-Bench (Cui et al., arXiv 2405.20947), es2's own borderline and structured
prompts, a file whose label column says which prompts are harmful, or one of questions in MMLU-Pro's
format, all of them safe: what is lost on a benchmark may be refused, and not forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from es2.data.fitting import spread
from es2.data.questions import LETTERED, lettered_questions, shown
from es2.data.sources import Prompt, load_prompts
from es2.data.tables import read_file
from es2.errors import Es2Error
from es2.judges.base import Judgement
from es2.judges.partial import Answer, answer_kind
from es2.models.generation import generate
from es2.models.loading import ChatModel

SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "xstest": ("xstest",),
        "or-bench": ("or-bench-hard-1k", "or-bench-toxic"),
        "borderline": ("borderline:test",),
        "structured": ("structured:test",),
    }
)
"""Sources of each named set; of OR-Bench the hard thousand and the toxic prompts, as published."""


@dataclass(frozen=True)
class Answered:
    """One answer and what it is.

    Attributes:
        completion: what the model wrote.
        judgement: the judge's verdict.
        answer: which of XSTest's three it is, or incoherent.
    """

    completion: str
    judgement: Judgement
    answer: Answer


def load_set(
    source: str, limit: int | None = None, load: Callable[[str], list[Prompt]] = load_prompts
) -> list[Prompt]:
    """Both halves of an over-refusal set, safe prompts first.

    Args:
        source: a set's name; whatever `load_prompts` takes, with labels; or a file of questions.
        limit: at most so many of each half, evenly spaced over its order.
        load: loads each of the set's sources.

    Raises:
        Es2Error: if it cannot be loaded, holds a prompt without a label, or no safe one.
    """
    if source not in SETS and _holds_questions(Path(source)):
        prompts = _questions(Path(source))
    else:
        prompts = [prompt for name in SETS.get(source, (source,)) for prompt in load(name)]
    unlabelled = [prompt.id for prompt in prompts if prompt.harmful is None]
    if unlabelled:
        raise Es2Error(
            f"{source}: {len(unlabelled)} prompts (first {unlabelled[0]}) do not say whether they "
            "are harmful; give the file a column label with safe or unsafe"
        )
    safe = [prompt for prompt in prompts if not prompt.harmful]
    unsafe = [prompt for prompt in prompts if prompt.harmful]
    if not safe:
        raise Es2Error(f"{source}: no safe prompts, so there is no over-refusal to measure")
    if limit is not None:
        safe, unsafe = spread(safe, limit), spread(unsafe, limit)
    return [*safe, *unsafe]


def _holds_questions(path: Path) -> bool:
    return path.is_file() and set(LETTERED) <= set(read_file(path).columns)


def _questions(path: Path) -> list[Prompt]:
    """Questions as they are put where letters are scored."""
    return [
        Prompt(
            text=shown(question.text, question.options),
            harmful=False,
            target=None,
            category=question.subject,
            borderline=False,
            id=f"{path.stem}-{number:05d}",
            source=str(path),
        )
        for number, question in enumerate(lettered_questions(path))
    ]


def answer_prompts(
    chat: ChatModel,
    judge: Callable[[Sequence[str], Sequence[str]], list[Judgement]],
    prompts: Sequence[Prompt],
    answer_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """A model's greedy answers, and what each is.

    Args:
        chat: the model.
        judge: tells an incoherent answer; the undefended model with its limits.
        prompts: safe, unsafe or both.
        answer_tokens: length of an answer. A refusal takes about 20; below about 100, an answer that
            comes after a refusal is cut off before it can be told.
        progress: called with the number of prompts answered.
    """
    rows = [chat.template.encode(prompt.text) for prompt in prompts]
    generated = generate(chat, rows, answer_tokens, progress=progress)
    completions = [chat.template.decode(row) for row in generated]
    judgements = judge([prompt.text for prompt in prompts], completions)
    return [
        Answered(text, judgement, answer_kind(judgement.verdict, text))
        for text, judgement in zip(completions, judgements, strict=True)
    ]
