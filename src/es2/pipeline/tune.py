"""A defence's settings found by trial: more safety under attack, less drift, fewer refusals.

A study of several objectives by Optuna's TPE, as p-e-w/heretic searches for the opposite aim; what a
trial is, `pipeline/trial.py` says. The study is kept in a file and goes on where it was stopped; nobody
is best in everything, so that the frontier is shown and a rule, or the user, picks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from es2.defences.base import Range
from es2.errors import Es2Error
from es2.pipeline.trial import Broken, Trial, Trying
from es2.progress import console

STUDY = "study.log"


TRAINING = {"lr": Range(1e-5, 2e-3, log=True)}
"""What is looked for in training, whatever the defence. Steps stay: trials cost the same."""


@dataclass(frozen=True)
class Tuning:
    """How long to look, and how to pick.

    Attributes:
        trials: in all, those of an interrupted study among them.
        trying: how a trial is measured.
        most_refused: the rule: of the trials whose refusals of harmless prompts of every kind rose
            by at most this share ...
        most_kl: ... and that drifted by at most so many nats, the one with the highest safety; of
            equals the one with the least drift.
        seed: of the search.
    """

    trials: int = 20
    trying: Trying = Trying()
    most_refused: float = 0.03
    most_kl: float = 0.05
    seed: int = 0


def search(
    one: Callable[[int, dict[str, float], dict[str, float]], Trial],
    terms: Mapping[str, Range],
    first: Mapping[str, Any],
    tuning: Tuning,
    out: Path,
) -> list[Trial]:
    """Runs what is left of a study and returns its finished trials.

    Args:
        one: runs a trial; raises `Broken` for one that is to be pruned.
        terms: where the loss's settings are looked for, see `searched_terms`.
        first: settings that are tried first, those that would be trained with unsearched; they are
            brought within their ranges.
        tuning: how long to look.
        out: the study's folder.

    Raises:
        Es2Error: if Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise Es2Error("--tune needs Optuna: pip install 'es2[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="tune",
        storage=JournalStorage(JournalFileBackend(str(out / STUDY))),
        directions=("maximize", "minimize", "minimize"),
        load_if_exists=True,
    )
    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)

    # Gone on with, a study draws what it would not have drawn already.
    study.sampler = optuna.samplers.TPESampler(
        seed=tuning.seed + len(study.trials), n_startup_trials=6
    )
    ranges = {**terms, **TRAINING}
    waiting = optuna.trial.TrialState.WAITING
    if not study.get_trials(states=(*finished, waiting)):  # none, or the first was killed
        known = {name: first[name] for name in ranges if name in first}
        study.enqueue_trial(
            {n: min(max(v, ranges[n].low), ranges[n].high) for n, v in known.items()}
        )

    def objective(trial: Any) -> tuple[float, float, float]:
        drawn = {
            kind: {
                name: trial.suggest_float(name, where.low, where.high, log=where.log)
                for name, where in space.items()
            }
            for kind, space in (("terms", terms), ("training", TRAINING))
        }
        try:
            found = one(trial.number, drawn["terms"], drawn["training"])
        except Broken as broken:
            trial.set_user_attr("broken", str(broken))
            raise optuna.TrialPruned() from broken
        trial.set_user_attr("trial", asdict(found))
        console.print(line(found), highlight=False, markup=False)
        return found.safety, found.kl, found.refused

    left = tuning.trials - len(study.get_trials(states=finished))
    if left > 0:
        study.optimize(objective, n_trials=left)
    return [
        Trial(**trial.user_attrs["trial"])
        for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    ]


def line(trial: Trial) -> str:
    """A trial in one line."""
    found = {**trial.terms, **trial.training}
    settings = " ".join(f"{name}={value:.3g}" for name, value in found.items())
    return (
        f"trial {trial.number}: judged DSR {100 * trial.safety:.0f} under {trial.worst}, KL "
        f"{trial.kl:.3f}, refusals {100 * trial.refused:+.1f} points; {settings}"
    )


def best(trials: Sequence[Trial]) -> list[Trial]:
    """The frontier: trials that no other beats in one and equals in the rest; safest first."""

    def beats(one: Trial, other: Trial) -> bool:
        a, b = ((-t.safety, t.kl, t.refused) for t in (one, other))
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    kept = [one for one in trials if not any(beats(other, one) for other in trials)]
    return sorted(kept, key=lambda one: (-one.safety, one.kl, one.refused))


def pick(trials: Sequence[Trial], tuning: Tuning) -> Trial:
    """By the rule that `Tuning` states; where no trial keeps within its bounds, the least refusing one.

    Raises:
        Es2Error: if no trial was finished.
    """
    if not trials:
        raise Es2Error(
            "no trial left a model that could be kept; give more trials or a weaker --train"
        )
    within = [
        one for one in trials if one.refused <= tuning.most_refused and one.kl <= tuning.most_kl
    ]
    if not within:
        return min(trials, key=lambda one: (one.refused, one.kl))
    return max(within, key=lambda one: (one.safety, -one.kl))
