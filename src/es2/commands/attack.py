"""`es2 attack`: attack one model, judge the answers, print the defence success rate."""

from __future__ import annotations

import json as jsonlib
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from es2.attacks import Victim
from es2.commands.options import Dtype, PromptOptions, load_model, named_values
from es2.config import make_attacks
from es2.data.sources import load_prompts
from es2.errors import Es2Error
from es2.models.loading import adapter_base
from es2.pipeline.asked import noted
from es2.pipeline.attack import attack_model, fitted_on, judge_of, label
from es2.pipeline.leaks import check_leaks, note
from es2.pipeline.trained_on import trained_on
from es2.progress import output
from es2.report.table import table
from es2.results.store import read_attempts, write_json
from es2.results.summary import rules_note, summarise


def attack(
    model: str,
    attack: str,
    prompts: str = "harmful:test",
    out: Path | None = None,
    limit: int | None = None,
    base: str | None = None,
    stale: bool = False,
    fit: PromptOptions = PromptOptions(borderline="none", at_most=200),
    settings: tuple[str, ...] = (),
    max_new_tokens: int = 48,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Attacks a model, refitted on that model, and judges every answer.

    Args:
        model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
        attack: its name; es2 list attacks tells those there are.
        prompts: harmful prompts to attack: a bundled name, a file, or a Hub data set.
        out: folder for attempts.jsonl and results.json; default: nothing is kept.
        limit: at most this many prompts, spread evenly.
        base: the undefended model, whose perplexity tells coherence; default: an adapter's base,
            or the model itself.
        stale: run the attack a second time, fitted on the undefended model alone.
        fit: prompts that the attack is fitted on.
        settings: the attack's own, as NAME=VALUE, such as p0=[0.001,0.0001].
        max_new_tokens: length of an answer.
        seed: of the attack, and of which prompts a limit draws.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device: default the accelerator if there is one.
        resume: go on with the attempts that are in --out.
        force: attack with prompts that the model or the attack was fitted on; the results say so.
        json: print results as JSON on standard output, and nothing else.
    """
    if out is not None and (out / "attempts.jsonl").is_file() and not resume:
        raise Es2Error(f"{out} holds attempts already; add --resume or give another --out")
    known = vars(make_attacks({attack: {}})[0])
    common = {"max_new_tokens": max_new_tokens, "seed": seed}
    values = {name: common[name] for name in known.keys() & common} | named_values(settings)
    chosen = make_attacks({attack: values})[0]
    aimed = load_prompts(prompts, prompt_column=fit.prompt_column, limit=limit, seed=seed)
    to_fit = fit.load(seed)
    leaks = check_leaks(
        {prompts: [prompt.text for prompt in aimed]}, trained_on(model) | fitted_on(to_fit), force
    )
    if base is None and (Path(model) / "adapter_config.json").is_file():
        base = adapter_base(Path(model))
    if stale and base is None:
        raise Es2Error(
            "--stale fits on the undefended model, which is not known; give it with --base"
        )
    chat = load_model(model, dtype, device)
    undefended = chat if base is None else load_model(base, dtype, device)
    asked = {
        "model": model,
        "base": base,
        "attack": {chosen.name: values},
        "prompts": [prompt.id for prompt in aimed],
        "fit": asdict(fit),
        "seed": seed,
        "dtype": dtype,
        "stale": stale,
        "overlap": leaks,
    }
    victim = Victim(chat, to_fit, base=None if base is None else undefended)
    victims = [victim, replace(victim, stale=True)] if stale else [victim]
    with tempfile.TemporaryDirectory() as scratch, noted(out, asked, "attack"):
        run = out or Path(scratch)
        judge = judge_of(undefended, to_fit)
        for one in victims:
            attack_model("model", one, judge, chosen, aimed, run)
        published = {label(chosen, one.stale): chosen.published for one in victims}
        records = read_attempts(run)
        notes = [*map(note, leaks), *rules_note(records)]
        results = summarise(records, published).model_copy(update={"notes": notes})
        if out is not None:
            write_json(out / "results.json", results)
    plain = results.model_dump(mode="json")
    if json:
        print(jsonlib.dumps(plain))
    else:
        output().print(table(plain))


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(attack, args=argv, prog="es2 attack")
