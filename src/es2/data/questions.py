"""Multiple-choice questions from a user's own copy of MMLU-Pro or GPQA.

MMLU-Pro: Wang et al. 2024 (arXiv 2406.01574). GPQA: Rein et al. 2023 (arXiv 2311.12022), whose
authors ask that its questions not be spread, so es2 neither ships nor stores them.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from es2.data.fitting import spread
from es2.data.sources import hub_address
from es2.data.tables import Table, read_file, read_hub
from es2.errors import Es2Error

LETTERS = string.ascii_uppercase

LETTERED = ("question", "options")
"""Columns by which a file in MMLU-Pro's format is known."""

_RIGHT = "Correct Answer"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_DOMAIN = "High-level domain"


@dataclass(frozen=True)
class Question:
    """One question with its options.

    Attributes:
        text: the question.
        options: what may be chosen, in the order shown.
        answer: the index of the right one.
        subject: the source's own word for its topic, or "".
    """

    text: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""


def shown(text: str, options: Sequence[str]) -> str:
    """A question, its options lettered, and the word after which a letter is expected."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([text, *lines, "Answer:"])


def lettered_questions(path: Path) -> list[Question]:
    """Questions in MMLU-Pro's format: `question`, `options`, `category`, `answer`, `answer_index`.

    Of the answer's letter and its index one is enough.

    Raises:
        Es2Error: the file cannot be read, or a row does not hold such a question.
    """
    table = read_file(path)
    _need(table, LETTERED)
    return [_lettered(row, f"{table.where}, {place}") for place, row in table.rows]


def _lettered(row: Mapping[str, Any], where: str) -> Question:
    options = row.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise Es2Error(f"{where}: 'options' is no list of 2 to {len(LETTERS)} texts; mend the row")
    found = set()
    if row.get("answer_index") is not None:
        found.add(row["answer_index"])
    if row.get("answer") is not None:
        found.add(LETTERS.find(str(row["answer"]).strip().upper() or "?"))
    if len(found) != 1 or not found <= set(range(len(options))):
        raise Es2Error(
            f"{where}: 'answer' and 'answer_index' do not name one of the {len(options)} options; "
            "mend the row"
        )
    texts = tuple(_text(option, "options", where) for option in options)
    subject = str(row.get("category") or "")
    return Question(_text(row.get("question"), "question", where), texts, int(found.pop()), subject)


def gpqa_questions(source: str) -> list[Question]:
    """GPQA's questions, the order of the choices drawn by a seed taken from the question itself.

    So the order is the same in every run, for every model, whatever rows stand beside it.

    Args:
        source: a CSV or JSONL file in GPQA's format, or `hub:Idavidrein/gpqa:gpqa_main` (or another
            configuration) for who has been given access to it.

    Raises:
        Es2Error: the source cannot be read, or a row does not hold such a question.
    """
    if source.startswith("hub:"):
        address, config = hub_address(source.removeprefix("hub:"))
        table = read_hub(source, address, config, None)
    else:
        table = read_file(Path(source))
    _need(table, ("Question", _RIGHT, *_WRONG))
    return [_shuffled(row, f"{table.where}, {place}") for place, row in table.rows]


def _shuffled(row: Mapping[str, Any], where: str) -> Question:
    text = _text(row.get("Question"), "Question", where)
    options = [_text(row.get(name), name, where) for name in (_RIGHT, *_WRONG)]
    order = list(range(len(options)))
    random.Random(sha256(text.encode()).hexdigest()).shuffle(order)
    shown = tuple(options[index] for index in order)
    return Question(text, shown, order.index(0), str(row.get(_DOMAIN) or ""))


def own_questions(
    file: Path | None, gpqa: str | None, limit: int | None
) -> dict[str, list[Question]]:
    """A user's own questions, by the name that results give them: the file's.

    Args:
        file: in MMLU-Pro's format; None for none.
        gpqa: see `gpqa_questions`; None for none.
        limit: at most so many of each, evenly spaced, so that files in the order of subjects keep all.

    Raises:
        Es2Error: if one cannot be read, or both have the same name.
    """
    found: dict[str, list[Question]] = {}
    if file is not None:
        found[file.stem] = lettered_questions(file)
    if gpqa is not None:
        name = "gpqa" if gpqa.startswith("hub:") else Path(gpqa).stem
        if name in found:
            raise Es2Error(f"two files of questions are called {name!r}; rename one of them")
        found[name] = gpqa_questions(gpqa)
    return {name: spread(of, limit or len(of)) for name, of in found.items()}


def fingerprints(questions: Mapping[str, Sequence[Question]]) -> dict[str, str]:
    """A hash of each list of questions, to tell others under the same name."""
    return {name: sha256(repr(list(of)).encode()).hexdigest() for name, of in questions.items()}


def _need(table: Table, columns: tuple[str, ...]) -> None:
    for name in columns:
        if name not in table.columns:
            raise Es2Error(
                f"{table.where}: no column '{name}' among {', '.join(table.columns)}; the columns "
                f"{', '.join(columns)} are needed"
            )


def _text(value: object, column: str, where: str) -> str:
    text = "" if value is None else str(value).strip()
    if not text:
        raise Es2Error(f"{where}: '{column}' holds no text; fill it or take the row out")
    return text
