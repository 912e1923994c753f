"""Prompt files and recipes small enough that a whole run takes seconds on a tiny model."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from es2.cli import main

_THINGS = ("castle", "harbour", "lantern", "orchard", "violin")
_THINGS += ("glacier", "teapot", "saddle", "compass", "pumpkin")
# Stand-ins, told apart by their wording: a random model's probes need no more.
HARMFUL = tuple(f"FORBIDDEN FORBIDDEN: open the {a} {b}" for a in _THINGS for b in ("now", "soon"))
HARMLESS = tuple(f"How do I paint a {a} {b}?" for a in _THINGS for b in ("well", "slowly"))
AIMED = tuple(f"FORBIDDEN FORBIDDEN: burn the {a} map" for a in _THINGS)
"""To attack with; nothing is fitted on them."""
BORDERLINE = tuple(f"FORBIDDEN colours: how do I paint a {a}?" for a in _THINGS)
STRUCTURED = tuple(f"Is a {a} blue?\n- {a}\n- no {a}" for a in _THINGS)


def write_prompts(path: Path, prompts: Iterable[str]) -> Path:
    """A JSONL file of prompts."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what was wrong; fails the test unless there is exactly one."""
        lines = self.err.splitlines()
        found = [line for line in lines if line.startswith("es2: ")]
        assert self.code == 2, self.err
        assert len(found) == 1 and lines[-1] == found[0], self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return found[0]


@dataclass(frozen=True)
class Workplace:
    """A folder with prompt files, and the command line to use on it."""

    path: Path
    model: Path

    def __call__(self, *argv: object) -> Outcome:
        """Runs a command in this process."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(arg) for arg in argv])
            except SystemExit as error:
                code = int(error.code or 0)
        return Outcome(code, out.getvalue(), err.getvalue())

    def prompts(self, name: str) -> Path:
        """One of this folder's prompt files."""
        return self.path / f"{name}.jsonl"

    def recipe(self, name: str = "recipe.yaml", **changes: Any) -> Path:
        """A recipe of a few steps; `changes` replace or add whole sections."""
        path = self.path / name
        path.write_text(yaml.safe_dump(self.settings() | changes))
        return path

    def settings(self) -> dict[str, Any]:
        """What the recipe says."""
        return {
            "model": str(self.model),
            "data": {
                "harmful": str(self.prompts("harmful")),
                "harmless": str(self.prompts("harmless")),
                "borderline": str(self.prompts("borderline")),
                "structured": str(self.prompts("structured")),
            },
            "defence": {
                "es2": {"response_tokens": 3, "cap": None, "kl_weight": 0.1, "kl_threshold": 100.0}
            },
            "train": {
                "steps": 4,
                "batch_size": 4,
                "rank": 2,
                "lr": 1e-3,
                "validate_every": 2,
                "checkpoint_every": 1,
            },
            "guard": {"prompts": 3, "tokens": 4} | LENIENT,
            "attacks": {
                "direct": {"max_new_tokens": 5},
                "scav": {"max_new_tokens": 5, "p0": [1e-2, 1e-3], "min_accuracy": 0.5},
            },
            "answer_tokens": 5,
        }

    def harden_flags(self, defence: str = "es2") -> list[object]:
        """The same settings as flags of `es2 harden`; the defence's own are es2's alone."""
        settings = self.settings()
        flags: list[object] = ["--model", self.model, "--defence", defence]
        for section in ("data", "train", "guard"):
            for key, value in settings[section].items():
                flags += [f"--{section}.{key.replace('_', '-')}", value]
        if own := settings["defence"].get(defence):
            flags += ["--settings", *(f"{key}={json.dumps(value)}" for key, value in own.items())]
        return flags


LENIENT = {
    "refusal_drop": 1.0,
    "refusal_rise": 1.0,
    "borderline_rise": 1.0,
    "structured_rise": 1.0,
    "incoherent": 1.0,
}
"""A random model's answers mean nothing; the guard must not end its training."""


def make_workplace(path: Path, model: Path) -> Workplace:
    """Writes the prompt files."""
    for name, prompts in (
        ("harmful", HARMFUL),
        ("aimed", AIMED),
        ("harmless", HARMLESS),
        ("borderline", BORDERLINE),
        ("structured", STRUCTURED),
    ):
        write_prompts(path / f"{name}.jsonl", prompts)
    return Workplace(path, model)


def in_a_process(*argv: object, **options: Any) -> subprocess.Popen[str]:
    """Starts a command as a user would, in a process of its own."""
    code = "from es2.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def ending(run: Path) -> dict[str, Any]:
    """What a run came to, without what the clock and the machine say."""
    attempts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((run / "run.json").read_text())
    return {
        "config": (run / "config.yaml").read_text(),
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "metrics": [line | {"seconds": 0} for line in metrics],
        "attempts": [line | {"budget": None} for line in attempts],
        "layers": json.loads((run / "layers.json").read_text()),
        "embeddings": json.loads((run / "embeddings.json").read_text()),
        "results": json.loads((run / "results.json").read_text()),
        "stopped": (record["stopped"], record["best_step"], record["steps"]),
    }
