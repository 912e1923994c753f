"""`es2 capability` on tiny models, as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from es2.pipeline import capability as stage
from es2.results.paired import paired_difference
from es2.results.store import read_records
from invented import SUBJECTS, gpqa_file, questions_file
from small import Workplace
from tiny import with_lora


@pytest.fixture
def adapter(es2: Workplace, tiny: Callable[[str], Any]) -> Path:
    """An adapter folder whose base is the workplace's model."""
    chat = with_lora(tiny("llama"), scale=0.5)
    folder = es2.path / "adapter"
    chat.model.peft_config["default"].base_model_name_or_path = str(es2.model)  # type: ignore[union-attr, index]
    chat.model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_an_adapter_is_measured_beside_its_base_item_by_item(es2: Workplace, adapter: Path) -> None:
    out = es2.path / "out"
    files = ["--file", questions_file(es2.path / "boats.jsonl")]
    files += ["--gpqa", gpqa_file(es2.path / "bells.csv")]
    done = es2("capability", "--model", adapter, *files, "--out", out, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads((out / "capability.json").read_text())
    assert found["models"] == {"base": str(es2.model), "defended": str(adapter)}
    assert list(found["benchmarks"]) == ["boats", "bells"]
    records = read_records(out / "capability.jsonl")
    assert len(records) == 2 * (12 + 8)
    for name, result in found["benchmarks"].items():
        of = {
            model: [r for r in records if (r["model"], r["task"]) == (model, name)]
            for model in ("base", "defended")
        }
        correct = {model: [r["correct"] for r in rs] for model, rs in of.items()}
        for model, score in result["models"].items():
            assert score["accuracy"]["rate"] == sum(correct[model]) / len(correct[model])
            assert score["unparsed"] is None and len(score["subjects"]) == 2
        expected = paired_difference(correct["base"], correct["defended"])
        assert result["differences"]["defended"]["p"] == expected.p and result["shots"] == 0
        assert of["base"] != of["defended"]
    assert found["benchmarks"]["bells"]["chance"] == 0.25
    assert "Which bell" not in (out / "capability.jsonl").read_text()


def test_the_harness_own_tasks_are_paired_and_tell_unparsed_answers(
    es2: Workplace, adapter: Path, harness_tasks: Path
) -> None:
    asked = ["--tasks", "fleet", "written", "--task-folder", harness_tasks, "--json"]
    done = es2("capability", "--model", adapter, *asked, "--limit", 5)
    assert done.code == 0, done.err
    fleet, written = (json.loads(done.out)["benchmarks"][name] for name in ("fleet", "written"))
    assert (fleet["shots"], written["shots"]) == (2, 0)
    assert fleet["differences"]["defended"]["n"] == 10
    assert written["differences"]["defended"]["n"] == 5
    for model in ("base", "defended"):
        assert set(fleet["models"][model]["subjects"]) == set(SUBJECTS)
        assert fleet["models"][model]["unparsed"] is None
        assert written["models"][model]["unparsed"]["n"] == 5
    assert written["chance"] is None and fleet["chance"] > 0.25


def test_the_table_names_models_shots_chance_and_the_difference(
    es2: Workplace, adapter: Path
) -> None:
    asked = ["--file", questions_file(es2.path / "boats.jsonl"), "--limit", 6]
    done = es2("capability", "--model", adapter, *asked)
    assert done.code == 0, done.err
    assert "boats, 0-shot" in done.out and "base" in done.out and "defended" in done.out
    assert "boats, defended less base:" in done.out and "n = 6" in done.out


def test_a_killed_measurement_goes_on_where_it_stopped(
    es2: Workplace, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["capability", "--model", adapter, "--file", questions_file(es2.path / "boats.jsonl")]
    asked += ["--gpqa", gpqa_file(es2.path / "bells.csv"), "--json"]
    whole = es2(*asked)
    out = es2.path / "out"
    calls: list[str] = []
    measured = stage.evaluate

    def dies(chat: Any, task: Any, *rest: Any) -> Any:
        calls.append(f"{chat.name} {task.name}")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(chat, task, *rest)

    monkeypatch.setattr(stage, "evaluate", dies)
    assert es2(*asked, "--out", out).code == 130
    path = out / "capability.jsonl"
    kept = path.read_bytes()
    # A kill in the middle of writing: some of a task's lines, the last one cut.
    path.write_bytes(kept[: len(kept) - 300])
    assert "--resume" in es2(*asked, "--out", out).complaint
    resumed = es2(*asked, "--out", out, "--resume")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out) == json.loads(whole.out)
    assert len(calls) == 3 + 3  # the base on the second file, the adapter on both
    again = es2(*asked, "--out", out, "--resume")
    assert again.code == 0 and len(calls) == 6
    records = read_records(path)
    assert len({(r["model"], r["task"], r["index"]) for r in records}) == len(records) == 40


def test_answers_to_other_questions_are_not_mixed_in(es2: Workplace) -> None:
    file, out = questions_file(es2.path / "boats.jsonl"), es2.path / "out"
    asked = ["capability", "--model", es2.model, "--file", file, "--out", out]
    assert es2(*asked).code == 0
    assert "other settings" in es2(*asked, "--limit", 3, "--resume").complaint
    questions_file(file, count=9)
    assert "other settings" in es2(*asked, "--resume").complaint


def test_nor_are_answers_of_an_adapter_trained_anew(es2: Workplace, adapter: Path) -> None:
    file, out = questions_file(es2.path / "boats.jsonl"), es2.path / "out"
    trained = shutil.copytree(adapter, es2.path / "trained")
    asked = ["capability", "--model", trained, "--file", file, "--limit", 2, "--out", out]
    assert es2(*asked).code == 0
    assert es2(*asked, "--resume").code == 0
    weights = trained / "adapter_model.safetensors"
    save_file({name: 2 * of for name, of in load_file(weights).items()}, weights)
    assert "other settings" in es2(*asked, "--resume").complaint


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        ([], "nothing to measure"),
        (["--gpqa", "missing.csv"], "no such file"),
        (["--file", "BOATS", "--limit", 0], "at least 1"),
        (["--file", "BOATS", "--batch-size", 0], "at least 1"),
        (["--file", "BOATS", "--task-folder", "nowhere"], "nowhere"),
        (["--file", "BOATS", "--gpqa", "BOATS"], "called 'boats'"),
    ],
)
def test_a_mistake_is_told_in_one_line(es2: Workplace, flags: list[object], phrase: str) -> None:
    file = questions_file(es2.path / "boats.jsonl")
    given = [file if flag == "BOATS" else flag for flag in flags]
    assert (
        phrase
        in es2("capability", "--model", es2.model, *given, "--out", es2.path / "out").complaint
    )
    assert not (es2.path / "out").exists()
