"""The run folder as the report sees it: results checked, all else optional."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from es2.errors import Es2Error
from es2.results.capability import CapabilityResults
from es2.results.comparison import COMPARISON, Members
from es2.results.margin import Margins
from es2.results.opinions import Judges
from es2.results.over_refusal import OverRefusal
from es2.results.rates import Rate
from es2.results.schema import DefenceResult, Dsr, Results
from es2.results.store import read_model, read_results

Model = TypeVar("Model", bound=BaseModel)

Reading = Literal["keyword", "judged"]
READINGS: tuple[Reading, ...] = ("keyword", "judged")


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds.

    Attributes:
        results: what was measured.
        config: all values, empty if missing.
        config_text: the same as written.
        run: facts about the run.
        layers: the survey of the layers and the chosen two.
        metrics: one mapping a training step.
        embeddings: 2-D projections.
        attempts: every prompt and completion with its judgement.
        drift: how far the defended model has moved.
        margin: the safety margins; None if they were not measured, as are the next three.
        refusal: over-refusal.
        capability: what the models know.
        judges: what other judges made of the attempts.
        members: who takes part in a comparison; None for a run.
        absent: why a file's part of the report is left out, by the file's name.
    """

    results: Results
    config: Mapping[str, Any]
    config_text: str
    run: Mapping[str, Any]
    layers: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    embeddings: Mapping[str, Any]
    attempts: list[dict[str, Any]]
    drift: Mapping[str, Any]
    margin: Margins | None
    refusal: OverRefusal | None
    capability: CapabilityResults | None
    judges: Judges | None
    members: Members | None
    absent: Mapping[str, str]


def read_run(run: Path) -> RunFolder:
    """Reads a run folder. Only `results.json` must be there and whole.

    Raises:
        Es2Error: if the folder or its results are missing or damaged.
    """
    if not run.is_dir():
        raise Es2Error(f"{run}: no such run folder; give the folder that a run was written to")
    absent: dict[str, str] = {}
    text = _optional_text(run / "config.yaml", absent)
    return RunFolder(
        results=read_results(run),
        config=_optional_yaml(text, absent),
        config_text=text,
        run=_optional_json(run / "run.json", absent),
        layers=_optional_json(run / "layers.json", absent),
        metrics=_optional_lines(run / "metrics.jsonl", absent),
        embeddings=_optional_json(run / "embeddings.json", absent),
        attempts=_optional_lines(run / "attempts.jsonl", absent),
        drift=_optional_json(run / "drift.json", absent),
        margin=_optional_model(run / "margin.json", Margins, absent),
        refusal=_optional_model(run / "over_refusal.json", OverRefusal, absent),
        capability=_optional_model(run / "capability.json", CapabilityResults, absent),
        judges=_optional_model(run / "judges.json", Judges, absent),
        members=_members(run / COMPARISON),
        absent=absent,
    )


def _members(path: Path) -> Members | None:
    """A run is none the poorer for being no comparison."""
    return read_model(path, Members) if path.is_file() else None


def models(results: Results) -> dict[str, DefenceResult]:
    """Every model measured, by name: the undefended base first, ES2 next."""
    names = sorted(results.defences, key=lambda name: (name != "base", name != "es2"))
    return {name: results.defences[name] for name in names}


def attacks(results: Results) -> list[str]:
    """The attacks that any model faced, in the order recorded."""
    return list(dict.fromkeys(a for model in results.defences.values() for a in model.attacks))


def rate_of(dsr: Dsr, reading: Reading) -> Rate:
    """Defence success in one of its readings."""
    return dsr.keyword if reading == "keyword" else dsr.judged


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _optional_text(path: Path, absent: dict[str, str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        absent[path.name] = f"{path.name} is not in the run folder"
    except OSError as error:
        absent[path.name] = f"{path.name} cannot be read ({_one_line(error)})"
    return ""


def _optional_json(path: Path, absent: dict[str, str]) -> dict[str, Any]:
    text = _optional_text(path, absent)
    if path.name in absent:
        return {}
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        absent[path.name] = f"{path.name} is damaged"
        return {}
    return data


def _optional_model(path: Path, kind: type[Model], absent: dict[str, str]) -> Model | None:
    data = _optional_json(path, absent)
    if path.name in absent:
        return None
    try:
        return kind.model_validate(data)
    except ValidationError:
        absent[path.name] = f"{path.name} is damaged or of another version"
        return None


def _optional_lines(path: Path, absent: dict[str, str]) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; one that was cut off by a kill is left out."""
    lines = []
    for text in _optional_text(path, absent).split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    if not lines:
        absent.setdefault(path.name, f"{path.name} holds no whole line")
    return lines


def _optional_yaml(text: str, absent: dict[str, str]) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text) if text else {}
    except yaml.YAMLError:
        data = None
    if not isinstance(data, dict):
        absent["config.yaml"] = "config.yaml is damaged"
        return {}
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
