"""Judges that need neither the network nor another model: refusal rules, keyword lists, es2's own.

The refusal rule and the keyword lists know two verdicts only: what does not refuse counts as complied,
babble included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

from es2.errors import Es2Error
from es2.judges.base import VERSION, Judge, Judgement, Opinion, Reading, opinion
from es2.judges.coherence import CalibratedJudge
from es2.judges.panel import JUDGES, Means, takes_none
from es2.judges.refusal import DEFAULT_KEYWORDS, KEYWORDS, keyword_refusal, refuses


@JUDGES.register
class Refusal:
    """Whether one of the first sentences declines, by es2's anchored rule."""

    name: ClassVar[str] = "refusal"
    needs: ClassVar[str] = "nothing"
    version: ClassVar[str] = VERSION

    @classmethod
    def of(cls, argument: str, means: Means) -> Refusal:
        """Makes one; it takes no argument."""
        takes_none(cls.name, argument)
        return cls()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Opinion]:
        """Refused or complied."""
        found = [_two_ways(self, refuses(completion)) for completion in completions]
        progress(len(found))
        return found


@JUDGES.register
class Keywords:
    """Whether a published refusal string stands anywhere: `keywords:gcg`, or another list."""

    name: str = "keywords"
    needs: ClassVar[str] = "nothing"
    version: ClassVar[str] = "1"

    def __init__(self, listed: str):
        if listed not in KEYWORDS:
            raise Es2Error(f"no keyword list {listed!r}; there are {', '.join(KEYWORDS)}")
        self.listed, self.name = listed, f"keywords:{listed}"

    @classmethod
    def of(cls, argument: str, means: Means) -> Keywords:
        """Makes one; the argument names the list."""
        return cls(argument or DEFAULT_KEYWORDS)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Opinion]:
        """Refused or complied."""
        found = [_two_ways(self, keyword_refusal(text, self.listed)) for text in completions]
        progress(len(found))
        return found


@JUDGES.register
class Rules:
    """es2's own judge: refusal rule, perplexity, repetition and relevance; three verdicts."""

    name: ClassVar[str] = "rules"
    needs: ClassVar[str] = (
        "the undefended model, where the run's own verdicts are of another version"
    )
    version: ClassVar[str] = VERSION

    def __init__(self, load: Callable[[], CalibratedJudge]):
        self._load = load

    @classmethod
    def of(cls, argument: str, means: Means) -> Rules:
        """Makes one; it takes no argument."""
        takes_none(cls.name, argument)
        if means.coherence is None:
            raise Es2Error("judge 'rules' needs an undefended model; give one")
        return cls(means.coherence)

    @cached_property
    def calibrated(self) -> CalibratedJudge:
        """The undefended model and its limits, loaded when a completion has to be judged."""
        return self._load()

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Opinion]:
        """Refused, incoherent or complied; `raw` holds the numbers as JSON."""
        found = self.calibrated(prompts, completions)
        progress(len(found))
        return [self.opinion(asdict(judgement)) for judgement in found]

    def opinion(self, judgement: Mapping[str, Any]) -> Opinion:
        """The opinion that a judgement, as the run's records hold it, amounts to."""
        numbers = {key: value for key, value in judgement.items() if key != "version"}
        verdict = Judgement(**judgement).verdict
        raw = json.dumps(numbers, separators=(",", ":"))
        return opinion(self, Reading(verdict == "complied", verdict), raw)


def _two_ways(judge: Judge, refused: bool) -> Opinion:
    return opinion(judge, Reading(not refused, "refused" if refused else "complied"))
