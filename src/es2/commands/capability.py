"""`es2 capability`: what a model knows, beside its base, on the same questions."""

from __future__ import annotations

import json as jsonlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import tyro
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from rich.table import Table

from es2.capability.lm_eval import harness_version, load_tasks
from es2.commands.options import Dtype, load_model
from es2.data.questions import fingerprints, own_questions
from es2.errors import Es2Error
from es2.models.embedded import checksum
from es2.models.loading import adapter_base
from es2.pipeline.capability import Asking, measure_capability
from es2.progress import output
from es2.report.formats import NONE, difference, interval
from es2.results.capability import ANSWERS, CAPABILITY, CapabilityResults
from es2.results.store import read_json


def capability(
    model: str,
    base: str | None = None,
    tasks: tuple[str, ...] = (),
    file: Path | None = None,
    gpqa: str | None = None,
    task_folder: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    chat_template: bool = True,
    batch_size: int = 8,
    dtype: Dtype = "auto",
    device: str | None = None,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Measures accuracy on benchmarks, of a model and its base, and the paired difference.

    Args:
        model: an embedded name (smollm2-aligned), a Hub id, a folder, or an adapter folder.
        base: the undefended model to compare with; default: an adapter's base, else none.
        tasks: tasks or groups of lm-evaluation-harness, such as mmlu_pro gpqa_main_zeroshot
            leaderboard.
        file: a JSONL file of questions in MMLU-Pro's format, measured zero-shot by log-likelihood.
        gpqa: your own copy of GPQA, a CSV or JSONL file or hub:Idavidrein/gpqa:gpqa_main, likewise.
        task_folder: more tasks for --tasks, in the harness's YAML.
        limit: at most so many items of each task (of a file: evenly spaced), for a quick look.
        out: folder for capability.json and capability.jsonl; default: nothing is kept.
        chat_template: put prompts into the model's chat template.
        batch_size: answers that are written at a time, in tasks that write answers.
        dtype: of the weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device: default the accelerator if there is one.
        resume: go on with the answers that are in --out.
        json: print capability.json on standard output, and nothing else.
    """
    if not (tasks or file or gpqa):
        raise Es2Error("nothing to measure; give --tasks mmlu_pro, --file FILE or --gpqa FILE")
    if limit is not None and limit < 1:
        raise Es2Error(f"--limit {limit}: has to be at least 1")
    if batch_size < 1:
        raise Es2Error(f"--batch-size {batch_size}: has to be at least 1")
    harness_version()
    if base is None and (Path(model) / "adapter_config.json").is_file():
        base = adapter_base(Path(model))
    models = {"model": model} if base is None else {"base": base, "defended": model}
    questions = own_questions(file, gpqa, limit)
    settings = {
        "tasks": list(tasks),
        "task_folder": None if task_folder is None else str(task_folder),
        "adapters": {name: hashed for name, of in models.items() if (hashed := _weights(of))},
        "files": fingerprints(questions),
        "limit": limit,
        "chat_template": chat_template,
        "dtype": dtype,
    }
    if out is not None:
        _check(out, models, settings, resume)
    found = load_tasks(tasks, questions, task_folder)
    with tempfile.TemporaryDirectory() as scratch:
        results = measure_capability(
            models,
            lambda source: load_model(source, dtype, device),
            found,
            Asking(limit, chat_template, batch_size),
            out or Path(scratch),
            settings,
        )
    if json:
        print(jsonlib.dumps(results.model_dump(mode="json")))
        return
    _show(results)


def _weights(model: str) -> str | None:
    """A hash of an adapter's weights, to tell one trained anew in the same folder; else None."""
    path = Path(model) / SAFETENSORS_WEIGHTS_NAME
    return checksum(path) if path.is_file() else None


def _check(
    out: Path, models: Mapping[str, str], settings: Mapping[str, object], resume: bool
) -> None:
    """Answers of other models, or to other questions, must not end up in one table."""
    if not (out / ANSWERS).is_file():
        return
    if not resume:
        raise Es2Error(f"{out} holds answers already; add --resume or give another --out")
    before = read_json(out / CAPABILITY)
    if before["models"] != models or before["settings"] != settings:
        raise Es2Error(
            f"{out} was measured with other settings (see {out / CAPABILITY}); give another --out"
        )


def _show(results: CapabilityResults) -> None:
    console = output(highlight=True)
    shown = Table("benchmark", "model", "correct", "95 %", "unparsed", "chance", "n", box=None)
    for name, result in results.benchmarks.items():
        for model, score in result.models.items():
            shown.add_row(
                f"{name}, {result.shots}-shot",
                model,
                f"{100 * score.accuracy.rate:.1f} %",
                interval(score.accuracy),
                NONE if score.unparsed is None else f"{100 * score.unparsed.rate:.1f} %",
                NONE if result.chance is None else f"{100 * result.chance:.1f} %",
                str(score.accuracy.n),
            )
    console.print(shown)
    for name, result in results.benchmarks.items():
        for model, change in result.differences.items():
            line = f"{name}, {model} less base: {difference(change)}"
            console.print(line, highlight=False, soft_wrap=True)


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(capability, args=argv, prog="es2 capability")
