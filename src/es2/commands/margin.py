"""`es2 margin`: push embeddings harder and harder; which breaks first, meaning or safety?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import tyro

from es2.attacks import Victim
from es2.attacks.push import Push
from es2.commands.options import Dtype, PromptOptions, load_model, named_values
from es2.config import make_attacks
from es2.data.fitting import spread
from es2.data.sources import load_prompts
from es2.errors import Es2Error
from es2.models.loading import adapter_base
from es2.pipeline.asked import noted
from es2.pipeline.attack import fitted_on, judge_of
from es2.pipeline.leaks import check_leaks
from es2.pipeline.margin import measure_margins
from es2.pipeline.trained_on import trained_on
from es2.progress import output
from es2.report.margin import margin_page, margin_table
from es2.report.page import write_page
from es2.results.margin import Margins


def margin(
    model: str,
    base: str | None = None,
    prompts: str = "harmful:test",
    out: Path | None = None,
    limit: int = 24,
    fit: PromptOptions = PromptOptions(borderline="none", at_most=200),
    settings: tuple[str, ...] = (),
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Sweeps the size of perturbations along SCAV's, RepE's and random directions, on both models.

    The safety margin is the size by which half the prompts are complied with over the size at which
    half the answers are incoherent: above 1, the output falls apart before it turns harmful.

    Args:
        model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
        base: the undefended model, swept as well; default: an adapter's base, or none.
        prompts: harmful prompts: a bundled name, a file, or a Hub data set.
        out: folder for margin.json, margin.html and the attempts; default: nothing is kept.
        limit: at most this many prompts, spread evenly.
        fit: prompts that the directions are fitted on.
        settings: the sweep's own, as NAME=VALUE, such as norms=[0.02,0.1,0.5].
        seed: of the directions, and of which prompts a limit draws.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device: default the accelerator if there is one.
        resume: go on with the sweep that is in --out.
        force: push prompts that the model or the directions were fitted on.
        json: print the margins as JSON on standard output, and nothing else.
    """
    if out is not None and (out / "push.json").is_file() and not resume:
        raise Es2Error(f"{out} holds a sweep already; add --resume or give another --out")
    push = make_attacks({"push": {"seed": seed} | named_values(settings)})[0]
    assert isinstance(push, Push)
    found = load_prompts(prompts, prompt_column=fit.prompt_column, seed=seed)
    aimed, to_fit = spread(found, limit), fit.load(seed)
    texts = [prompt.text for prompt in aimed]
    leaks = check_leaks({prompts: texts}, trained_on(model) | fitted_on(to_fit), force)
    if base is None and (Path(model) / "adapter_config.json").is_file():
        base = adapter_base(Path(model))
    asked = {
        "model": model,
        "base": base,
        "push": asdict(push),
        "prompts": [prompt.id for prompt in aimed],
        "fit": asdict(fit),
        "dtype": dtype,
        "overlap": leaks,
    }
    chat = load_model(model, dtype, device)
    undefended = chat if base is None else load_model(base, dtype, device)
    victims = {"base": Victim(undefended, to_fit)}
    if base is not None:
        victims["defended"] = Victim(chat, to_fit)
    with tempfile.TemporaryDirectory() as scratch, noted(out, asked, "push"):
        judge = judge_of(undefended, to_fit)
        swept = measure_margins(victims, judge, push, aimed, out or Path(scratch))
    if out is not None:
        write_page(out / "margin.html", margin_page(swept, model))
    show(swept, json)


def show(swept: Margins, json: bool) -> None:
    """Prints the margins on standard output."""
    if json:
        print(swept.model_dump_json())
    else:
        output().print(margin_table(swept))


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(margin, args=argv, prog="es2 margin")
