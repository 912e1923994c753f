"""Prefill: the response already starts with compliance, and the model goes on from there.

Source: Andriushchenko et al., "Jailbreaking Leading Safety-Aligned LLMs with Simple Adaptive Attacks"
(arXiv 2404.02151); Qi et al. (arXiv 2406.05946) show that safety tuning is often no deeper than a
response's first tokens, which this steps past.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import metered
from es2.attacks.target import AFFIRMATION
from es2.data.sources import Prompt
from es2.models.generation import generate


@ATTACKS.register
@dataclass(frozen=True)
class Prefill:
    """Starts the response with the prompt's target.

    Attributes:
        lengths: words of the target to start with; null for all of it.
        max_new_tokens: length of what the model adds.
    """

    name: ClassVar[str] = "prefill"
    threat: ClassVar[ThreatModel] = "response prefix"
    published: ClassVar[tuple[str, ...]] = ("words=all",)
    least: ClassVar[Mapping[str, float]] = {"lengths": 1, "max_new_tokens": 1}
    lengths: tuple[int | None, ...] = (1, 3, 6, None)
    max_new_tokens: int = 48

    def settings(self) -> Sequence[str]:
        """One for each length."""
        return [f"words={length or 'all'}" for length in self.lengths]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Goes on from each start; the completion that is judged begins with it."""
        chat = victim.chat
        for length, setting in zip(self.lengths, self.settings(), strict=True):
            if setting in skip:
                continue
            starts = [self.start(prompt, length) for prompt in prompts]
            rows = [
                chat.template.encode(p.text, start)
                for p, start in zip(prompts, starts, strict=True)
            ]
            with metered(chat) as spent:
                added = generate(chat, rows, self.max_new_tokens, progress=progress)
            whole = [
                chat.template.encode_response(start) + new
                for start, new in zip(starts, added, strict=True)
            ]
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(response),
                    spent.among(len(prompts)),
                    details={"start": start},
                )
                for prompt, response, start in zip(prompts, whole, starts, strict=True)
            ]

    def start(self, prompt: Prompt, length: int | None) -> str:
        """The first `length` words of the prompt's target, or of a general affirmation."""
        return " ".join((prompt.target or AFFIRMATION).split()[:length])
