"""What runs have to have in common before their figures stand in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from es2.config import Recipe, load_recipe
from es2.data.sources import BUNDLED
from es2.errors import Es2Error
from es2.results.store import read_attempts, read_json
from es2.results.summary import rules_of

SETTINGS = ("model", "dtype", "data", "attacks", "limits", "answer_tokens")
"""Of a run's recipe."""

ASKED: Mapping[str, str] = {
    "over_refusal/asked.json": "answers to over-refusal sets",
    "margin/push.json": "pushes or prompts of the safety margin",
}
"""What `es2 evaluate` was asked for, where it was."""

JUDGED = ("", "over_refusal", "margin")
"""Folders of a run that hold verdicts."""


def check_alike(runs: Sequence[Path]) -> None:
    """Compares every run with the first.

    Raises:
        Es2Error: naming two runs and what is different, or the rules that judged them.
    """
    for run in runs[1:]:
        if found := _differs(runs[0], run):
            raise Es2Error(f"{run}: has other {found} than {runs[0]}; they cannot be compared")
    check_rules(runs)


def check_rules(runs: Sequence[Path]) -> None:
    """Verdicts of one version of the rules do not compare with another's.

    Raises:
        Es2Error: naming a run with other verdicts than the first's.
    """
    first: list[str] = []
    for run in runs:
        for folder in JUDGED:
            found = rules_of(read_attempts(run / folder))
            first = first or found
            if found and found != first:
                raise Es2Error(
                    f"{run / folder}: verdicts of {' and '.join(found)}, and elsewhere of "
                    f"{' and '.join(first)}; es2 judge --run RUN --renew reads a run's answers again"
                )


def _differs(first: Path, second: Path) -> str | None:
    """What two runs ought to have in common and do not."""
    one, other = (as_cut(load_recipe(run / "config.yaml")) for run in (first, second))
    for setting in SETTINGS:
        if getattr(one, setting) != getattr(other, setting):
            return setting.replace("_", " ")
    for file, what in ASKED.items():
        paths = first / file, second / file
        if all(path.is_file() for path in paths):
            asked, also = (read_json(path) for path in paths)
            if asked != also:
                return what
    return None


def as_cut(run: Recipe) -> Recipe:
    """The recipe with the seed by which its files are cut; with none if es2 ships all of them cut."""
    data = run.data
    sources = {data.harmful, data.harmless, data.borderline, data.structured} - {None}
    own = run.seed if data.seed is None else data.seed
    return replace(run, data=replace(data, seed=None if sources <= set(BUNDLED) else own))
