"""Attacking a model and judging the answers: attempts in, records out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from es2.attacks.base import Attack, Victim
from es2.data.fitting import FitPrompts, bundled_fit, spread
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge, calibrate
from es2.judges.remembered import Remembering
from es2.models.loading import ChatModel
from es2.pipeline.asked import check_prompts
from es2.pipeline.leaks import check_leaks
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
    force: bool = False,
) -> AttackResult:
    """Attacks a model, refitted on it, judges the answers, and returns the rates.

    Args:
        chat: the model under attack.
        attack: with its settings.
        prompts: harmful prompts to get an answer to.
        base: the undefended model, which judges coherence; None for the model itself.
        fit: prompts to fit on; None for es2's own.
        force: attack with prompts that are fitted on too.

    Raises:
        Es2Error: if prompts are copies of some that are fitted on, unless forced.
    """
    victim = Victim(chat, fit or bundled_fit(extra=False).at_most(200), base=base)
    check_leaks({"prompts": [p.text for p in prompts]}, fitted_on(victim.fit), force)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        judge = judge_of(base or chat, victim.fit)
        attack_model("model", victim, judge, attack, prompts, run)
        results = summarise(read_attempts(run), {attack.name: attack.published})
    return results.defences["model"].attacks[attack.name]


def fitted_on(fit: FitPrompts) -> dict[str, Sequence[str]]:
    """What an attack is fitted on, by name."""
    return {
        "the harmful prompts to fit on": [*fit.harmful, *fit.held_harmful],
        "the harmless prompts to fit on": [*fit.harmless, *chain(*fit.held_safe.values())],
    }


def label(attack: Attack, stale: bool) -> str:
    """The attack's name in records and results: one that is fitted on the base is called stale."""
    return f"{attack.name}_stale" if stale else attack.name


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

    Settings of the attack that the folder already holds for all prompts are not run again. An attack
    that works `prompt_by_prompt` is not run again on prompts that the folder holds under every setting;
    others are, since rounding depends on which prompts share a batch.

    Args:
        defence: the victim's name in the records: `base`, or a defence.
        victim: the model under attack and what to fit on.
        judge: the undefended model and its limits.
        attack: with its settings.
        prompts: harmful prompts to get an answer to.
        run: the run folder.

    Raises:
        Es2Error: if the folder holds the attack's attempts at other prompts.
    """
    name = label(attack, victim.stale)
    done: dict[str, set[str]] = {}
    own: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for record in read_attempts(run):
        if (record["kind"], record["defence"], record["attack"]) == ("attack", defence, name):
            own.append(record)
            done.setdefault(record["prompt_id"], set()).add(record["setting"])
        else:
            others.append(record)
    check_prompts(own, prompts, ["attack"] * len(prompts), f"{name} on {defence}")
    settings = set(attack.settings())
    left = [prompt for prompt in prompts if not settings <= done.get(prompt.id, set())]
    if not left:
        return
    if getattr(attack, "prompt_by_prompt", False):
        prompts = left
    skip = settings.intersection(*(done.get(prompt.id, set()) for prompt in prompts))
    again = {prompt.id for prompt in prompts}
    # A portion of which a kill left some is tried again whole, and so judged again whole.
    kept = [r for r in own if r["prompt_id"] not in again or r["setting"] in skip]
    verdicts = Remembering(judge, others + kept)
    with bar(f"{name} on {defence}", len(prompts) * len(settings - skip)) as advance:
        for attempts in attack.run(victim, prompts, skip, advance):
            judgements = verdicts([a.prompt for a in attempts], [a.completion for a in attempts])
            pairs = zip(attempts, judgements, strict=True)
            # A kill may have left some of a setting's attempts; none is recorded twice.
            new = [
                (replace(one, attack=name), judgement)
                for one, judgement in pairs
                if one.setting not in done.get(one.prompt_id, ())
            ]
            append_attempts(run, [attempt_record(defence, "attack", a, j) for a, j in new])
