"""A judge that does not read the same answer to the same prompt twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from es2.judges.base import VERSION, Judgement
from es2.judges.coherence import CalibratedJudge


class Remembering:
    """Passes on to a judge what is new; sweeps give many prompts the same refusal again and again.

    Args:
        judge: the undefended model and its limits.
        records: attempts that it has judged already. If a run is gone on with, they are what was known
            when it was killed, so that what is judged next is read in the same batches and to the
            same digit.
    """

    def __init__(self, judge: CalibratedJudge, records: Iterable[Mapping[str, Any]] = ()):
        self._judge = judge
        self._known = {
            (record["prompt"], record["completion"]): Judgement(**record["judgement"])
            for record in records
            if record["judgement"]["version"] == VERSION
        }

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        """A verdict on every completion."""
        pairs = list(zip(prompts, completions, strict=True))
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self._known]:
            found = self._judge([prompt for prompt, _ in new], [text for _, text in new])
            self._known.update(zip(new, found, strict=True))
        return [self._known[pair] for pair in pairs]
