"""Measuring the safety margin: every model pushed harder and harder, every answer judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from es2.attacks.base import Victim
from es2.attacks.push import Push
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge
from es2.pipeline.attack import attack_model
from es2.results.margin import Margins, margins
from es2.results.store import read_attempts, write_json

MARGIN = "margin.json"


def measure_margins(
    victims: Mapping[str, Victim],
    judge: CalibratedJudge,
    push: Push,
    prompts: Sequence[Prompt],
    run: Path,
) -> Margins:
    """Sweeps every model and writes `margin.json`; the attempts are in `margin/attempts.jsonl`.

    Sizes that an interrupted sweep has done are not done again.

    Args:
        victims: models by name, the undefended called `base`.
        judge: the undefended model and its limits.
        push: directions and sizes.
        prompts: harmful prompts that no model was fitted on.
        run: the folder.
    """
    for name, victim in victims.items():
        attack_model(name, victim, judge, push, prompts, run / "margin")
    return write_margins(run, push.seed)


def write_margins(run: Path, seed: int) -> Margins:
    """`margin.json` from the sweep's attempts; the seed is of the resampling."""
    found = margins(read_attempts(run / "margin"), seed)
    write_json(run / MARGIN, found)
    return found
