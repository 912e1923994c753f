"""The examples run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.embedded


def run(script: str, cwd: Path, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_five_lines_harden_and_attack(tmp_path: Path) -> None:
    source = (EXAMPLES / "five_lines.py").read_text()
    lines = [line for line in source.splitlines()[1:] if line and not line.startswith("import")]
    assert len(lines) == 5
    printed = run("five_lines.py", tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == ["base", "hardened"]
    assert printed.count("n=8") == 2
    assert (tmp_path / "runs" / "five_lines" / "adapter" / "adapter_config.json").is_file()


def test_separating_by_hand_is_short_and_pushes_the_classes_apart(tmp_path: Path) -> None:
    assert len((EXAMPLES / "separate_by_hand.py").read_text().splitlines()) < 200
    printed = run("separate_by_hand.py", tmp_path, "--steps", "4", "--save", "adapter")
    ratios = [float(ratio) for ratio in re.findall(r"\(x([\d.]+)\)", printed)]
    assert len(ratios) == 2 and max(ratios) > 1.0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_attack_of_ones_own_runs_and_is_registered(tmp_path: Path) -> None:
    body = (EXAMPLES / "custom_attack.py").read_text().split("@ATTACKS.register")[1]
    assert len(body.split("if __name__")[0].strip().splitlines()) <= 35
    assert "n=8" in run("custom_attack.py", tmp_path)


def test_a_defence_of_ones_own_trains(tmp_path: Path) -> None:
    printed = run("custom_defence.py", tmp_path)
    refusal = [float(nats) for nats in re.findall(r"refusal ([\d.]+) nats", printed)]
    assert len(refusal) == 6 and refusal[-1] < refusal[0] / 1.5
    assert (tmp_path / "runs" / "deeper" / "adapter" / "adapter_config.json").is_file()
