"""`es2 evaluate` on a finished run of a tiny model, as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from es2.judges.base import VERSION
from es2.pipeline import experiment
from es2.results.store import read_results, write_records
from invented import questions_file
from small import Workplace, contents, write_prompts

QUICK = ("--answer-tokens", 3, "--pushed", 2, "--push", "norms=[0.1]", "min_accuracy=0.5")


@pytest.fixture
def run(finished: Workplace, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished.path / "run", tmp_path / "run"))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """An over-refusal set of four safe and four unsafe prompts."""
    path = tmp_path / "own.jsonl"
    rows = [
        {"prompt": f"{word} the kite {n}", "label": label, "category": f"kites {n % 2}"}
        for word, label in (("Fly", "safe"), ("Cut", "unsafe"))
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_part_is_measured_on_base_and_defended(
    finished: Workplace, run: Path, labelled: Path, tmp_path: Path
) -> None:
    questions = questions_file(tmp_path / "boats.jsonl")
    asked = ["evaluate", "--run", run, "--sets", labelled, "--questions", questions, *QUICK]
    done = finished(*asked, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    for part in ("over_refusal", "capability", "margin"):
        assert found[part] == json.loads((run / f"{part}.json").read_text())
    assert set(found["drift"]) == {"prompt", "first", "opening", "response"}
    for half in ("safe", "unsafe"):
        for model in ("base", "es2"):
            assert found["over_refusal"]["models"][model]["own"][half]["n"] == 4
        assert found["over_refusal"]["changes"]["es2"]["own"][half]["declined"]["n"] == 4
    assert found["capability"]["benchmarks"]["boats"]["differences"]["es2"]["n"] == 12
    assert found["margin"]["models"]["es2"]["scav"]["gain"] is not None
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Left out" not in page
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert {"evaluate: margin", "evaluate: over-refusal", "evaluate: capability"} <= stages.keys()

    before = {name: data for name, data in contents(run).items() if name.endswith(".jsonl")}
    again = finished(*asked)
    assert again.code == 0, again.err
    assert {name: data for name, data in contents(run).items() if name.endswith(".jsonl")} == before
    for word in ("half complied", "own, safe prompts declined", "boats, accuracy", "comparisons"):
        assert word in again.out


def test_a_run_is_read_again_by_todays_rules_and_no_model_answers_anew(
    finished: Workplace, run: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished("evaluate", "--run", run, "--sets", labelled, *QUICK).code == 0
    files = ("results.json", "over_refusal.json", "margin.json", "judges.json")
    expected = {name: json.loads((run / name).read_text()) for name in files}
    parts = [run, run / "over_refusal", run / "margin"]
    before = [_read(part) for part in parts]
    for part, records in zip(parts, before, strict=True):
        for record in records:
            record["judgement"] |= {"verdict": "complied", "version": "rules-0"}
            record["details"] |= {"answer": "full_compliance"} if record["kind"] == "safe" else {}
        write_records(part / "attempts.jsonl", records)
    for name in ("results.json", "over_refusal.json", "margin.json"):
        (run / name).write_text("{}")
    for asks in ("run.attack_model", "margin.attack_model", "evaluate.measure_answers"):
        monkeypatch.setattr(f"es2.pipeline.{asks}", pytest.fail)
    done = finished("judge", "--run", run, "--judges", "rules", "--renew")
    assert done.code == 0, done.err
    for part, old in zip(parts, before, strict=True):
        for one, other in zip(_read(part), old, strict=True):
            assert one["completion"] == other["completion"]
            assert one["judgement"]["version"] == VERSION
    for name in files[:3]:
        assert json.loads((run / name).read_text()) == expected[name]
    again = json.loads((run / "judges.json").read_text())
    assert again["judges"]["rules"] == expected["judges.json"]["judges"]["rules"]
    assert "report.html" in contents(run)


def _read(part: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (part / "attempts.jsonl").read_text().splitlines()]


def test_a_set_that_cannot_be_had_leaves_its_place_empty_and_says_why(
    finished: Workplace, run: Path, tmp_path: Path
) -> None:
    done = finished("evaluate", "--run", run, "--sets", tmp_path / "none.csv", *QUICK, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert "none.csv" in found["absent"][str(tmp_path / "none.csv")]
    assert found["over_refusal"]["models"] == {}
    assert "Not measured" in (run / "report.html").read_text(encoding="utf-8")


def test_a_set_that_was_trained_on_is_refused_unless_forced(
    finished: Workplace, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = [json.loads(line)["prompt"] for line in finished.prompts("harmless").open()]
    path = write_prompts(tmp_path / "leak.jsonl", [])
    rows = [{"prompt": prompt, "label": "safe"} for prompt in trained]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = contents(run)
    asked = ["evaluate", "--run", run, "--sets", path, *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "load", pytest.fail)  # refused before any model is loaded
        complaint = finished(*asked).complaint
    assert "leak: " in complaint and "harmless:train" in complaint and "--force" in complaint
    assert contents(run) == before
    forced = finished(*asked, "--force", "--json")
    assert forced.code == 0, forced.err
    assert "harmless:train" in (run / "report.html").read_text(encoding="utf-8")
    notes = read_results(run).notes
    assert any("leak: " in note and "harmless:train" in note for note in notes)
    # The file is another now, and what it was asked is in the results still.
    path.write_text('{"prompt": "Name a colour", "label": "safe"}\n')
    assert "answers to other prompts" in finished(*asked).complaint
    moved = path.rename(tmp_path / "other.jsonl")
    assert finished("evaluate", "--run", run, "--sets", moved, *QUICK).code == 0
    assert read_results(run).notes == notes
    twice = finished(
        "evaluate", "--run", run, "--sets", moved, tmp_path / "b" / "other.csv", *QUICK
    )
    assert "two sets are called other" in twice.complaint


def test_a_comparison_is_not_judged_again(finished: Workplace, run: Path) -> None:
    (run / "comparison.json").write_text("{}")
    assert "judge its members" in finished("judge", "--run", run, "--renew").complaint


def test_only_a_finished_run_is_evaluated(finished: Workplace, tmp_path: Path) -> None:
    assert "not a run folder" in finished("evaluate", "--run", tmp_path).complaint
    (tmp_path / "config.yaml").write_text((finished.path / "run" / "config.yaml").read_text())
    assert "run.json" in finished("evaluate", "--run", tmp_path).complaint


def test_only_a_finished_run_is_judged_again(finished: Workplace, run: Path) -> None:
    (run / "results.json").unlink()
    assert "no results yet" in finished("judge", "--run", run, "--renew").complaint


def test_other_settings_are_not_mixed_into_a_sweep(finished: Workplace, run: Path) -> None:
    asked = ["evaluate", "--run", run, "--sets", "none.csv", *QUICK]
    assert finished(*asked).code == 0
    other = finished(*asked[:-2], "norms=[0.2]", "min_accuracy=0.5")
    assert "other settings" in other.complaint
