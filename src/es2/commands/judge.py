"""`es2 judge`: let several judges read a run's attempts, and show where they agree."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml

from es2.commands.options import Dtype, PromptOptions, load_model
from es2.errors import Es2Error
from es2.judges import Means, make, make_all
from es2.judges.coherence import CalibratedJudge, Limits
from es2.judges.endpoint import Client, Endpoint
from es2.pipeline.attack import judge_of
from es2.pipeline.experiment import reopen
from es2.pipeline.judging import judge_run
from es2.progress import output
from es2.report.opinions import opinions
from es2.results.answers import AnswerFile
from es2.results.store import ATTEMPTS, read_json


def judge(
    run: Path,
    judges: tuple[str, ...] = ("rules", "refusal", "keywords:jailbreakbench"),
    endpoint: str | None = None,
    endpoint_model: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    requests_per_minute: float | None = None,
    concurrency: int = 8,
    timeout: float = 60.0,
    temperature: float | None = 0.0,
    answer_tokens: int | None = 512,
    price_in: float | None = None,
    price_out: float | None = None,
    limit: int | None = None,
    renew: bool = False,
    dtype: Dtype = "auto",
    device: str | None = None,
    json: bool = False,
) -> None:
    """Asks judges about the attacks' attempts in a run folder; what they said before is kept.

    Args:
        run: the folder of es2 run, or of es2 attack with --out.
        judges: their names; es2 list judges tells those there are.
        endpoint: address of a chat model that judges by rubric, such as http://localhost:8000/v1.
        endpoint_model: the model's name there.
        key_variable: the environment variable that holds the endpoint's key.
        requests_per_minute: at most so many, retries included.
        concurrency: requests under way at once.
        timeout: seconds to wait for an answer.
        temperature: of the chat model; None leaves it to the endpoint.
        answer_tokens: longest answer; None leaves it to the endpoint.
        price_in: of a million tokens read.
        price_out: of a million tokens written.
        limit: at most so many attempts, spread evenly.
        renew: first read all answers of a run of es2 run again by this version's own rules, and write
            its results and its report anew; answers stay as they are.
        dtype: of classifiers' weights; auto is float32 on CPU and bfloat16 on an accelerator.
        device: that classifiers run on; default the accelerator if there is one.
        json: print judges.json on standard output, and nothing else.
    """
    if limit is not None and limit < 1:
        raise Es2Error(f"--limit is {limit}, but has to be at least 1")
    if not (run / ATTEMPTS).is_file():
        raise Es2Error(f"{run} holds no {ATTEMPTS}; give the folder of a run")
    if (endpoint is None) != (endpoint_model is None):
        raise Es2Error("--endpoint and --endpoint-model go together; give both")
    answers = AnswerFile(run)
    client = None
    if endpoint is not None and endpoint_model is not None:
        client = Client(
            Endpoint(
                url=endpoint,
                model=endpoint_model,
                key_variable=key_variable,
                requests_per_minute=requests_per_minute,
                concurrency=concurrency,
                timeout=timeout,
                temperature=temperature,
                answer_tokens=answer_tokens,
                price_in=price_in,
                price_out=price_out,
            ),
            answers,
        )
    means = Means(
        coherence=lambda: undefended(run, device),
        client=client,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        device=device,
    )
    make_all(judges, means)  # a mistake in a name is told before any work
    if renew:
        from es2.pipeline.rejudge import rejudge  # draws a report: half a second to import

        rejudge(reopen(run))
    found = judge_run(run, (make(name, means) for name in judges), answers, limit)
    if json:
        print(jsonlib.dumps(found.model_dump(mode="json")))
        return
    output().print(opinions(found))


def undefended(run: Path, device: str | None) -> CalibratedJudge:
    """The undefended model of a run with its limits: those recorded, or set again as they were.

    Raises:
        Es2Error: if the folder does not say which model that was.
    """
    if (run / "config.yaml").is_file():
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        known = read_json(run / "run.json").get("judge")
        if (limits := Limits.recorded(known)) is not None:
            base = load_model(config["model"], config["dtype"], device)
            return CalibratedJudge(base, limits)
        if known is not None:  # of other rules: set again as a run sets them
            return reopen(run).judge
    if (run / "attack.json").is_file():
        asked: dict[str, Any] = read_json(run / "attack.json")
        name = asked["base"] or asked["model"]
        given = PromptOptions(**asked["fit"])
        labelled = None if given.labelled is None else Path(given.labelled)
        fit = replace(given, labelled=labelled).load(asked["seed"])
        return judge_of(load_model(name, asked["dtype"], device), fit)
    raise Es2Error(
        f"{run} does not say which model was undefended, so 'rules' cannot judge it anew"
    )


def main(argv: list[str]) -> None:
    """Parses the command line."""
    tyro.cli(judge, args=argv, prog="es2 judge")
