"""Attacking a model and judging the answers: attempts in, records out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from es2.attacks.base import Attack, Victim
from es2.data.fitting import FitPrompts, bundled_fit, spread
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge, calibrate
from es2.models.loading import ChatModel
from es2.progress import bar
from es2.results.schema import AttackResult
from es2.results.store import append_attempts, attempt_record, read_attempts
from es2.results.summary import summarise


def attack(
    chat: ChatModel,
    attack: Attack,
    prompts: Sequence[Prompt],
    *,
    base: ChatModel | None = None,
    fit: FitPrompts | None = None,
) -> AttackResult:
    """Attacks a model, refitted on it, judges the answers, and returns the rates.

    Args:
        chat: the model under attack.
        attack: with its settings.
        prompts: harmful prompts to get an answer to.
        base: the undefended model, which judges coherence; None for the model itself.
        fit: prompts to fit on; None for es2's own.
    """
    victim = Victim(chat, fit or bundled_fit(borderline=False).at_most(200), base=base)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        judge = judge_of(base or chat, victim.fit)
        attack_model("model", victim, judge, attack, prompts, run)
        results = summarise(read_attempts(run), {attack.name: attack.published})
    return results.defences["model"].attacks[attack.name]


def judge_of(base: ChatModel, fit: FitPrompts) -> CalibratedJudge:
    """The undefended model as a judge, its limits set from its own harmless answers."""
    with bar("calibrating the judge", 1) as advance:
        limits = calibrate(base, spread(fit.held_harmless, 24))
        advance()
    return CalibratedJudge(base, limits)


def attack_model(
    defence: str,
    victim: Victim,
    judge: CalibratedJudge,
    attack: Attack,
    prompts: Sequence[Prompt],
    run: Path,
) -> None:
    """Attacks, judges, and appends a record an attempt to a run folder's `attempts.jsonl`.

    Settings of the attack that the folder already holds for all prompts are not run again.

    Args:
        defence: the victim's name in the records: `base`, or a defence.
        victim: the model under attack and what to fit on.
        judge: the undefended model and its limits.
        attack: with its settings.
        prompts: harmful prompts to get an answer to.
        run: the run folder.
    """
    wanted = {prompt.id for prompt in prompts}
    done: dict[str, set[str]] = {}
    for record in read_attempts(run):
        if (record["kind"], record["defence"], record["attack"]) == (
            "attack",
            defence,
            attack.name,
        ):
            done.setdefault(record["setting"], set()).add(record["prompt_id"])
    skip = {setting for setting, ids in done.items() if ids >= wanted}
    left = len(prompts) * (len(attack.settings()) - len(skip))
    if not left:
        return
    with bar(f"{attack.name} on {defence}", left) as advance:
        for attempts in attack.run(victim, prompts, skip, advance):
            judgements = judge([a.prompt for a in attempts], [a.completion for a in attempts])
            pairs = zip(attempts, judgements, strict=True)
            # A kill may have left some of a setting's attempts; none is recorded twice.
            new = [(a, j) for a, j in pairs if a.prompt_id not in done.get(a.setting, ())]
            append_attempts(run, [attempt_record(defence, "attack", a, j) for a, j in new])
