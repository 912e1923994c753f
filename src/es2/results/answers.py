"""`answers.jsonl`: what endpoints answered, so that a resumed run pays for nothing twice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from es2.errors import Es2Error
from es2.judges.endpoint import Answer
from es2.results.opinions import Spending, together
from es2.results.store import append_records, read_records

ANSWERS = "answers.jsonl"


class AnswerFile:
    """Answers by the hash of what was asked; neither the question nor any key is stored.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path):
        self._path = run / ANSWERS
        self._known: dict[str, Answer] = {}
        for record in read_records(self._path):
            try:
                asked = record.pop("asked")
                self._known[asked] = Answer(**record)
            except (KeyError, TypeError) as error:
                raise Es2Error(
                    f"{self._path}: a line is damaged or of another version ({error}); delete the file"
                ) from error

    def get(self, key: str) -> Answer | None:
        """The answer, if it is known."""
        return self._known.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Remembers an answer; on return it is on the disk."""
        append_records(self._path, [{"asked": key, **asdict(answer)}])
        self._known[key] = answer

    def spending(self) -> Spending:
        """What all answers in the file took."""
        return together(
            Spending(
                answers=1,
                tokens_in=answer.tokens_in or 0,
                tokens_out=answer.tokens_out or 0,
                cost=answer.cost,
            )
            for answer in self._known.values()
        )
