"""Direct inquiry: the harmful prompt itself, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import metered
from es2.data.sources import Prompt
from es2.models.generation import generate


@ATTACKS.register
@dataclass(frozen=True)
class Direct:
    """Asks and takes the greedy answer.

    Attributes:
        max_new_tokens: length of the answer.
    """

    name: ClassVar[str] = "direct"
    threat: ClassVar[ThreatModel] = "prompt text"
    published: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {"max_new_tokens": 1}
    max_new_tokens: int = 48

    def settings(self) -> Sequence[str]:
        """One, unnamed."""
        return [""]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Answers every prompt once."""
        if "" in skip:
            return
        chat = victim.chat
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        with metered(chat) as spent:
            answers = generate(chat, rows, self.max_new_tokens, progress=progress)
        budget = spent.among(len(prompts))
        yield [
            Attempt.of(self, "", prompt, chat.template.decode(answer), budget)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
