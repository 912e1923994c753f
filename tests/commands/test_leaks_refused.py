"""`es2 attack` on prompts that the model or the attack was fitted on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from small import Workplace, write_prompts


def flags(es2: Workplace, prompts: Path, *more: object) -> list[object]:
    fit = ["--fit.harmful", es2.prompts("aimed"), "--fit.harmless", es2.prompts("borderline")]
    adapter = es2.path / "run" / "adapter"
    aimed = ["--model", adapter, "--attack", "direct", "--prompts", prompts, "--limit", 10]
    return ["attack", *aimed, *fit, "--max-new-tokens", 3, *more]


def test_an_adapter_is_not_attacked_with_its_training_prompts(finished: Workplace) -> None:
    complaint = finished(*flags(finished, finished.prompts("harmful"))).complaint
    assert "prompts are also in harmful:train of" in complaint
    assert "(exact)" in complaint and "--force" in complaint


def test_a_forced_attack_carries_the_note(finished: Workplace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = finished(
        *flags(finished, finished.prompts("harmful"), "--force", "--out", out, "--json")
    )
    assert done.code == 0, done.err
    assert any("harmful:train" in note for note in json.loads(done.out)["notes"])
    assert json.loads((out / "attack.json").read_text())["overlap"]
    assert "warning" in done.err


def test_new_prompts_are_attacked_without_a_note(finished: Workplace, tmp_path: Path) -> None:
    new = write_prompts(tmp_path / "new.jsonl", ["Name a river", "Sing of the sea"])
    done = finished(*flags(finished, new, "--json"))
    assert done.code == 0, done.err
    assert json.loads(done.out)["notes"] == []


def test_prompts_that_the_attack_is_fitted_on_are_refused(finished: Workplace) -> None:
    complaint = finished(*flags(finished, finished.prompts("aimed"))).complaint
    # A quarter of a file is not fitted on.
    assert "8 of 10 prompts are also in the harmful prompts to fit on (exact)" in complaint


@pytest.mark.parametrize("config", [None, "model: 3\nno such: setting\n"])
def test_an_adapter_whose_training_is_not_known_is_attacked(
    finished: Workplace, tmp_path: Path, config: str | None
) -> None:
    shutil.copytree(finished.path / "run" / "adapter", tmp_path / "adapter")
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    command = flags(finished, finished.prompts("harmful"), "--json")
    command[command.index("--model") + 1] = tmp_path / "adapter"
    done = finished(*command)
    assert done.code == 0, done.err
    assert ("not known and not compared" in done.err) == (config is not None)
