"""What a user can get wrong costs one line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from small import Workplace, contents, in_a_process

Flags = list[object]


def harden(es2: Workplace, *more: object) -> Flags:
    return ["harden", *es2.harden_flags(), "--out", es2.path / "out", *more]


def prompt_file(es2: Workplace, name: str, data: bytes | str) -> Path:
    path = es2.path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def base_model(es2: Workplace) -> Path:
    """A model whose tokenizer has no chat template."""
    folder = es2.path / "base"
    shutil.copytree(es2.model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def corrupt_adapter(es2: Workplace) -> Path:
    folder = es2.path / "broken"
    folder.mkdir()
    config = {"base_model_name_or_path": str(es2.model), "peft_type": "LORA", "r": 2}
    config |= {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"not a safetensors file")
    return folder


def one_class(es2: Workplace) -> Flags:
    lines = "".join(f'{{"prompt": "ask {i}", "label": "unsafe"}}\n' for i in range(20))
    labelled = prompt_file(es2, "one.jsonl", lines)
    columns = ["--prompts.labelled", labelled, "--prompts.label-column", "label"]
    return ["layers", "--model", es2.model, *columns]


BAD: dict[str, tuple[Callable[[Workplace], Flags], str]] = {
    "unknown command": (lambda es2: ["hardne"], "hardne"),
    "unknown model": (lambda es2: harden(es2, "--model", "no-such-model"), "no-such-model"),
    "missing model folder": (lambda es2: harden(es2, "--model", "./nowhere"), "nowhere"),
    "folder without a model": (lambda es2: harden(es2, "--model", es2.path), "config.json"),
    "base model": (lambda es2: harden(es2, "--model", base_model(es2)), "chat template"),
    "corrupt adapter": (lambda es2: harden(es2, "--model", corrupt_adapter(es2)), "broken"),
    "layer out of range": (lambda es2: harden(es2, "--layers", "1,5"), "layers 1 to 4"),
    "layer 0": (lambda es2: harden(es2, "--layers", "0"), "layers 1 to 4"),
    "layers that are no numbers": (lambda es2: harden(es2, "--layers", "x"), "'x'"),
    "empty file": (
        lambda es2: harden(es2, "--data.harmful", prompt_file(es2, "none.jsonl", "")),
        "none.jsonl",
    ),
    "too few prompts": (
        lambda es2: harden(es2, "--data.harmless", prompt_file(es2, "few.txt", "Hi\nHo\n")),
        "too few",
    ),
    "wrong column": (lambda es2: harden(es2, "--data.prompt-column", "quest"), "no column 'quest'"),
    "not UTF-8": (
        lambda es2: harden(es2, "--data.harmful", prompt_file(es2, "l1.txt", b"caf\xe9\n" * 9)),
        "UTF-8",
    ),
    "unknown set": (lambda es2: harden(es2, "--data.harmful", "harmfull"), "'harmful'"),
    "one class": (one_class, "no harmless prompts"),
    "no steps": (lambda es2: harden(es2, "--train.steps", 0), "train.steps"),
    "negative learning rate": (lambda es2: harden(es2, "--train.lr", -1.0), "train.lr"),
    "no prompts to validate on": (lambda es2: harden(es2, "--guard.prompts", 0), "guard.prompts"),
    "unknown attack": (
        lambda es2: ["attack", "--model", es2.model, "--attack", "gcgg", "--out", es2.path / "out"],
        "best_of_n, direct",
    ),
    "limit 0": (
        lambda es2: ["attack", "--model", es2.model, "--attack", "direct", "--limit", 0],
        "at least 1",
    ),
    "attack settings out of range": (
        lambda es2: ["attack", "--model", es2.model, "--attack", "scav", "--settings", "p0=[1]"],
        "between 0 and 1",
    ),
    "stale without the undefended model": (
        lambda es2: [
            *["attack", "--model", es2.model, "--attack", "direct", "--stale"],
            *["--out", es2.path / "out"],
        ],
        "--base",
    ),
    "a trial of no study": (lambda es2: harden(es2, "--pick", 3), "--tune"),
    "limit 0 for layers": (lambda es2: ["layers", "--model", es2.model, "--limit", 0], "limit"),
    "no layer to attack": (
        lambda es2: [
            *["attack", "--model", es2.model, "--attack", "scav", "--out", es2.path / "out"],
            # Two classes that are the same cannot be told apart.
            *[f"--fit.{name}={es2.prompts('harmless')}" for name in ("harmful", "harmless")],
        ],
        "no layer's probe",
    ),
    "missing run": (lambda es2: ["report", "--run", es2.path / "out"], "out"),
    "missing recipe": (lambda es2: ["run", es2.path / "gone.yaml"], "no such recipe"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_in_one_line(es2: Workplace, name: str) -> None:
    make, phrase = BAD[name]
    outcome = es2(*make(es2))
    assert phrase in outcome.complaint
    assert not (es2.path / "out").exists()


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("model: [unclosed", "not readable as YAML"),
        ("- model", "a mapping"),
        ("", "a mapping"),
        ("name: x", "model"),
        ("model: x\nseeds: 1", "'seeds'"),
        ("model: x\ndefence: {es2: {kl_wieght: 1}}", "kl_wieght"),
        ("model: x\ntrain: {steps: many}", "train.steps"),
        ("model: x\ntrain: {steps: 0}", "train.steps"),
        ("model: x\ndefence: {es2: {form: square}}", "form"),
        ("model: x\nattacks: {gcgg: {}}", "'gcgg'"),
        ("model: x\nattacks: {scav: {p00: 1}}", "'p00'"),
        ("model: x\nattacks: {scav: {p0: high}}", "attacks.scav"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_told_by_its_key(
    es2: Workplace, text: str, phrase: str
) -> None:
    recipe = prompt_file(es2, "bad.yaml", text)
    complaint = es2("run", recipe, "--out", es2.path / "out").complaint
    assert phrase in complaint and "bad.yaml" in complaint
    assert not (es2.path / "out").exists()


def test_a_corrupt_adapter_leaves_one_line_in_a_process_of_its_own(es2: Workplace) -> None:
    process = in_a_process("attack", "--model", corrupt_adapter(es2), "--attack", "direct")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("es2: cannot load adapter")


def test_training_that_diverges_leaves_no_adapter(es2: Workplace) -> None:
    outcome = es2(*harden(es2, "--layers", "1,4", "--train.lr", 1e30, "--train.warmup", 0))
    assert "diverged at step" in outcome.complaint
    whole(es2.path / "out")
    assert not (es2.path / "out" / "adapter").exists()


def test_a_folder_that_is_a_file_is_told(es2: Workplace) -> None:
    (es2.path / "out").write_text("mine")
    assert "out" in es2(*harden(es2, "--layers", "1,4")).complaint
    assert (es2.path / "out").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        target = tmp_path / f"disk-{size}"
        target.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a full disk is made with a small tmpfs, which may not be mounted here")
        mounted.append(target)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


@pytest.mark.parametrize("size", ["4k", "12k", "48k", "112k", "152k", "176k"])
def test_a_full_disk_is_told_and_leaves_whole_files(
    es2: Workplace, small_disk: Callable[[str], Path], size: str
) -> None:
    out = small_disk(size) / "out"
    flags = [*harden(es2, "--layers", "1,4"), "--out", out]
    outcome = es2(*flags)
    assert "disk is full" in outcome.complaint or "No space left" in outcome.complaint
    whole(out)


def whole(out: Path) -> None:
    """Fails unless every file of a run folder is whole."""
    for name, data in contents(out).items():
        assert not os.path.basename(name).startswith(".") and not name.endswith((".tmp", ".draft"))
        if name.endswith((".json", ".jsonl")):
            for text in [data] if name.endswith(".json") else data.splitlines():
                json.loads(text)
        if name.endswith(".yaml"):
            assert yaml.safe_load(data)["model"]
