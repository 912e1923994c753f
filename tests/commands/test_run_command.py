"""`es2 run`: the whole run folder, once; again or after a kill, the same."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from es2.config import load_recipe
from es2.judges.coherence import Limits, judge
from es2.models.generation import generate
from es2.models.loading import load
from es2.pipeline import experiment
from es2.pipeline.trained_on import trained_on
from es2.results.store import read_attempts
from small import Workplace, contents, ending, in_a_process


def test_the_run_folder_is_whole(finished: Workplace) -> None:
    run = finished.path / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "run.json",
        "layers.json",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
        "attempts.jsonl",
        "results.json",
        "report.html",
    }
    assert not [name for name in contents(run) if name.endswith((".tmp", ".draft"))]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["warmup"] == 5 and config["seed"] == 0  # defaults, written out
    record = json.loads((run / "run.json").read_text())
    assert record["model"] == str(finished.model)
    assert record["versions"]["torch"] and record["machine"] and record["stopped"]
    for stage in ("load", "layers", "harden", "geometry", "attack", "cost"):
        assert record["stages"][stage]["seconds"] >= 0
        assert record["stages"][stage]["peak_memory_mb"] > 0
    layers = json.loads((run / "layers.json").read_text())
    assert layers["chosen"]["layers"][-1] == 4 and layers["chosen"]["why"]
    for curve in ("base", "es2"):
        assert [row["layer"] for row in layers["curves"][curve]] == [1, 2, 3, 4]


def test_results_hold_every_key_that_readers_rely_on(finished: Workplace) -> None:
    results = json.loads((finished.path / "run" / "results.json").read_text())
    for name in ("base", "es2"):
        defence = results["defences"][name]
        for attack in ("direct", "scav"):
            found = defence["attacks"][attack]
            readings = [found["dsr"]] + ([found["published"]["dsr"]] if attack == "scav" else [])
            for dsr in readings:
                for reading in ("keyword", "judged"):
                    rate = dsr[reading]
                    assert 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1
                    assert rate["n"] == 5  # a quarter of the file
            assert set(found["verdicts"]) == {"refused", "incoherent", "complied"}
            assert sum(found["verdicts"].values()) == pytest.approx(1)
        cost = defence["cost"]
        assert cost["over_refusal"]["n"] == 5
        assert cost["borderline_refusal"]["n"] == cost["structured_refusal"]["n"] == 2
    assert results["defences"]["base"]["cost"]["kl"] == 0
    assert results["defences"]["base"]["cost"]["perplexity_ratio"] == 1
    assert results["defences"]["es2"]["cost"]["kl"] > 0
    assert results["defences"]["es2"]["cost"]["perplexity_ratio"] > 0


def test_attempts_are_one_line_for_each_prompt_and_setting(finished: Workplace) -> None:
    lines = (finished.path / "run" / "attempts.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    tries = [(r["defence"], r["kind"], r["attack"], r["setting"], r["prompt_id"]) for r in records]
    assert len(tries) == len(set(tries))
    # Two models; five prompts to direct and to both settings of SCAV; five, two and two harmless ones.
    assert len(tries) == 2 * (5 * 3 + 5 + 2 + 2)


def test_every_answer_is_judged_by_the_model_as_it_came(finished: Workplace) -> None:
    run = finished.path / "run"
    limits = Limits(**json.loads((run / "run.json").read_text())["judge"])
    records = read_attempts(run)
    fresh = load(str(finished.model), device="cpu")
    texts = [r["prompt"] for r in records], [r["completion"] for r in records]
    for record, found in zip(records, judge(fresh, *texts, limits), strict=True):
        assert record["judgement"]["verdict"] == found.verdict
        assert record["judgement"]["perplexity"] == pytest.approx(found.perplexity, rel=1e-3)


def test_the_models_are_the_base_and_the_saved_adapter(finished: Workplace) -> None:
    run = finished.path / "run"
    models = {"base": finished.model, "es2": run / "adapter"}
    for name, folder in models.items():
        chat = load(str(folder), device="cpu")
        records = [r for r in read_attempts(run) if (r["defence"], r["attack"]) == (name, "direct")]
        answers = generate(chat, [chat.template.encode(r["prompt"]) for r in records], 5)
        assert [r["completion"] for r in records] == [chat.template.decode(a) for a in answers]


def test_a_finished_run_is_shown_again_without_touching_it(
    finished: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.path / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(experiment, "load", pytest.fail)  # no model is needed
    recipe = finished.path / "recipe.yaml"
    again = finished("run", recipe, "--out", run, "--resume")
    assert again.code == 0
    assert str(run / "report.html") in again.out
    assert finished("run", recipe, "--out", run, "--resume").out == again.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_json_puts_the_results_alone_on_standard_output(finished: Workplace) -> None:
    run = finished.path / "run"
    shown = finished("run", finished.path / "recipe.yaml", "--out", run, "--resume", "--json")
    assert json.loads(shown.out) == json.loads((run / "results.json").read_text())


def test_a_folder_that_holds_a_run_is_refused_without_resume(finished: Workplace) -> None:
    run = finished.path / "run"
    before = contents(run)
    refused = finished("run", finished.path / "recipe.yaml", "--out", run)
    assert "--resume" in refused.complaint
    assert contents(run) == before


def test_a_folder_of_another_run_is_refused(finished: Workplace) -> None:
    run = finished.path / "run"
    before = contents(run)
    other = finished("run", finished.path / "recipe.yaml", "--out", run, "--resume", "--seed", 1)
    assert "other settings" in other.complaint
    assert contents(run) == before


def test_report_writes_the_page_again(finished: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.path / "run", run)
    first = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    shown = finished("report", "--run", run)
    assert shown.code == 0 and shown.out.split() == [str(run / "report.html")]
    assert (run / "report.html").read_bytes() == first


def test_a_run_killed_in_the_middle_of_its_attacks_ends_the_same(
    finished: Workplace, tmp_path: Path
) -> None:
    run, recipe = tmp_path / "run", finished.path / "recipe.yaml"
    process = in_a_process("run", recipe, "--out", run)
    attempts, until = run / "attempts.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if attempts.is_file() and attempts.stat().st_size:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait(timeout=60) == -signal.SIGKILL, process.communicate()[1]
    assert not (run / "results.json").exists()
    # As a kill in the middle of writing leaves it: whole lines, then part of one.
    attempts.write_bytes(attempts.read_bytes()[:-200])
    assert attempts.read_bytes().count(b"\n") >= 2
    resumed = finished("run", recipe, "--out", run, "--resume")
    assert resumed.code == 0, resumed.err
    whole = ending(finished.path / "run")
    again = ending(run)
    for part, value in whole.items():
        assert again[part] == value, part


def test_a_run_may_measure_on_validation_prompts_and_says_so(es2: Workplace) -> None:
    settings = es2.settings()
    recipe = es2.recipe(data=settings["data"] | {"measured": "validation", "test_harmless": 2})
    done = es2("run", recipe, "--out", es2.path / "chosen")
    assert done.code == 0, done.err
    prompts = experiment.load_all(load_recipe(recipe))
    held = {prompt.id for prompt in prompts.harmful.validation}
    attempts = read_attempts(es2.path / "chosen")
    assert {one["prompt_id"] for one in attempts if one["kind"] == "attack"} == held
    harmless = {one["prompt_id"] for one in attempts if one["kind"] == "harmless"}
    assert harmless <= {prompt.id for prompt in prompts.harmless.validation} and len(harmless) == 2
    note = "measured on validation prompts, by which settings are chosen"
    assert json.loads((es2.path / "chosen" / "results.json").read_text())["notes"] == [note]
    assert note in (es2.path / "chosen" / "report.html").read_text()
    # The checkpoint was chosen by them: for anybody else they are no news.
    trained = trained_on(str(es2.path / "chosen" / "adapter"))
    assert any(name.startswith("harmful:validation") for name in trained)
