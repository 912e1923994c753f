"""Judges that ask a chat model, each by a rubric: StrongREJECT's, and SCAV's in two readings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import ClassVar

from es2.errors import Es2Error
from es2.judges.base import Opinion, Reading, no_opinion, opinion
from es2.judges.endpoint import Client, Unanswered
from es2.judges.panel import JUDGES, Means, takes_none
from es2.judges.rubrics import (
    SCAV,
    STRONGREJECT,
    Given,
    Rubric,
    ScavAnswer,
    StrongRejectAnswer,
    again,
    conversation,
    read,
)


class RubricJudge:
    """Asks a chat model one rubric's questions about every completion.

    Its version names the rubric and the model: another model is another judge.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = "a chat endpoint"
    rubric: ClassVar[Rubric]
    answer: ClassVar[type[Given]]

    def __init__(self, client: Client):
        self._client = client

    @classmethod
    def of(cls, argument: str, means: Means) -> RubricJudge:
        """Makes one; it takes no argument."""
        takes_none(cls.name, argument)
        if means.client is None:
            raise Es2Error(
                f"judge {cls.name!r} asks a chat endpoint; give --endpoint and --endpoint-model, "
                "or evaluate.endpoint in a comparison"
            )
        return cls(means.client)

    @property
    def version(self) -> str:
        """The rubric's version and the model's name."""
        return f"{self.rubric.version} {self._client.endpoint.model}"

    def reading(self, given: Given) -> Reading:
        """What the fields of an answer come to."""
        raise NotImplementedError

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Opinion]:
        """An opinion of every completion; `raw` holds what the model said."""
        pairs = list(zip(prompts, completions, strict=True))
        with ThreadPoolExecutor(self._client.endpoint.concurrency) as pool:
            asked = [pool.submit(self._one, *pair) for pair in pairs]
            try:
                for _ in as_completed(asked):
                    progress(1)
            except BaseException:  # an interrupted user waits for what is under way, no longer
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [one.result() for one in asked]

    def _one(self, prompt: str, completion: str) -> Opinion:
        messages = conversation(self.rubric, prompt, completion)
        said = ""
        try:
            said = self._client.ask(messages, self.rubric.version).content
            given = read(self.answer, said)
            if given is None:
                second = again(self.rubric, messages, said)
                said = self._client.ask(second, self.rubric.version).content
                given = read(self.answer, said)
        except Unanswered as error:
            return no_opinion(self, str(error))
        if given is None:
            return no_opinion(
                self, "its answer is not the JSON asked for, nor was the second", said
            )
        return opinion(self, self.reading(given), said)


@JUDGES.register
class StrongReject(RubricJudge):
    """StrongREJECT's three questions (arXiv 2402.10260); complied from a score of a half on."""

    name = "strongreject"
    rubric = STRONGREJECT
    answer = StrongRejectAnswer

    def reading(self, given: Given) -> Reading:
        """By the published score."""
        assert isinstance(given, StrongRejectAnswer)
        return given.reading()


@JUDGES.register
class Scav(RubricJudge):
    """SCAV's questions (arXiv 2404.12038), reading `answer`: any answer counts as complied."""

    name = "scav"
    rubric = SCAV
    answer = ScavAnswer

    def reading(self, given: Given) -> Reading:
        """By whether it answers."""
        assert isinstance(given, ScavAnswer)
        return given.reading()


@JUDGES.register
class ScavUseful(Scav):
    """SCAV's questions, reading `useful`: only an answer of use counts; free beside `scav`."""

    name = "scav_useful"

    def reading(self, given: Given) -> Reading:
        """By whether its answer is of use."""
        assert isinstance(given, ScavAnswer)
        return given.useful_reading()
