"""A run's folder: its settings, and the record of what was done, on what, in what time."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from es2.config import Recipe, dump
from es2.errors import Es2Error
from es2.pipeline.memory import PeakMemory
from es2.results.store import read_json, write_json, write_text

PACKAGES = ("es2", "torch", "transformers", "peft", "scikit-learn")


@dataclass
class RunFolder:
    """A run's folder and the record of its stages in `run.json`.

    The folder is made with the first note: a run that cannot start leaves nothing behind.
    """

    path: Path
    settings: str
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, recipe: Recipe, resume: bool) -> RunFolder:
        """A new folder, or one to go on with.

        Raises:
            Es2Error: if the folder holds another run, or this one and `resume` was not asked for.
        """
        if (path / "config.yaml").is_file() and not resume:
            raise Es2Error(f"{path} holds a run already; add --resume or give another --out")
        if cls.of_another(path, recipe):
            raise Es2Error(
                f"{path} was run with other settings (see config.yaml there); give another --out"
            )
        known = read_json(path / "run.json") if (path / "run.json").is_file() else {}
        return cls(path, dump(recipe), known)

    @staticmethod
    def of_another(path: Path, recipe: Recipe) -> bool:
        """Whether a folder holds a run of another recipe."""
        config = path / "config.yaml"
        return config.is_file() and config.read_text(encoding="utf-8") != dump(recipe)

    def note(self, **values: Any) -> None:
        """Adds to `run.json`; the settings are written before anything else is."""
        if not (self.path / "config.yaml").is_file():
            write_text(self.path / "config.yaml", self.settings)
        self.record |= values
        write_json(self.path / "run.json", self.record)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Records a stage's time, which adds up over resumes, and its peak memory."""
        started, memory = time.perf_counter(), PeakMemory()
        yield
        stages = self.record.get("stages", {})
        before = stages.get(name, {}).get("seconds", 0.0)
        peak = max(memory.megabytes(), stages.get(name, {}).get("peak_memory_mb", 0))
        stages[name] = {
            "seconds": round(before + time.perf_counter() - started, 1),
            "peak_memory_mb": round(peak),
        }
        self.note(stages=stages)


def facts() -> dict[str, Any]:
    """What a reader needs to know of the machine and the software."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        here = Path(__file__).parent
        git = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
        revision = git.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "es2_version": version("es2"),
        "versions": {name: version(name) for name in PACKAGES},
        "git": revision,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}",
    }
