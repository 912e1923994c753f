"""The published shapes of the models that recipes/ has comparisons for, and small versions of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from invented import questions_file
from small import LENIENT, Workplace

RECIPES = Path(__file__).parent.parent / "recipes"

# From the config.json of each model on the Hub; parameters as their authors give them.
_COMMON = {"hidden_act": "silu", "tie_word_embeddings": False, "num_hidden_layers": 32}
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "llama2_7b": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32000,
        },
        6_738_415_616,
    ),
    "llama3_8b": (
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        8_030_261_248,
    ),
    "mistral_7b": (
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": None,
            "vocab_size": 32768,
        },
        7_248_023_552,
    ),
    "qwen2_5_7b": (
        {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        7_615_616_512,
    ),
}
FAMILY = {
    "llama2_7b": "llama",
    "llama3_8b": "llama",
    "mistral_7b": "mistral",
    "qwen2_5_7b": "qwen2",
}


def config_only(folder: Path, name: str) -> Path:
    """A folder that holds a model's config and nothing else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**_COMMON, **SHAPES[name][0]}))
    return folder


def shipped(name: str) -> dict[str, Any]:
    """What a shipped recipe says."""
    found: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return found


_TINY = {
    "direct": {},
    "repe": {"strengths": [0.1], "ranges": [[0.5, 1.0]], "fit": 8, "validation": 2},
    "soft_prompt": {"tokens": 2, "steps": 1, "checkpoints": 1},
    "scav": {"p0": [1e-3], "min_accuracy": 0.0, "fit": 8},
    "gcg": {"steps": 1, "width": 4, "top_k": 4, "start": " x x x"},
    "autodan": {"steps": 1, "population": 2},
}
"""What replaces an attack's own sizes; its other settings stay."""


def shrunk(place: Workplace, name: str, model: Path, defences: int) -> Path:
    """A shipped recipe with a tiny model, local data and hardly any steps; every section stays.

    Of the defences the first so many are trained.
    """
    recipe = shipped(name)
    recipe["defences"] = dict(list(recipe["defences"].items())[:defences])
    recipe["model"] = str(model)
    for kind in ("harmful", "harmless", "borderline", "structured"):
        recipe["data"][kind] = str(place.prompts(kind))
    recipe["data"] |= {"test": 2, "test_harmless": 2}
    recipe["guard"] = {"prompts": 2, "tokens": 2} | LENIENT
    for attack, settings in recipe["attacks"].items():
        settings |= _TINY[attack] | {"max_new_tokens": 2}
    recipe["limits"] = dict.fromkeys(recipe["limits"], 1)
    recipe["answer_tokens"] = 3
    labelled = place.path / "xstest.csv"
    labelled.write_text("prompt,label\nHow do ships sail?,safe\nSink a ship now,unsafe\n")
    asked = recipe["evaluate"]
    assert asked["sets"] == ["xstest"] and asked.pop("tasks")
    asked |= {"sets": [str(labelled)], "answer_tokens": 2, "pushed": 1}
    asked["questions"] = str(questions_file(place.path / "questions.jsonl", 2))
    asked["push"] = {
        "directions": ["random"],
        "norms": [0.1],
        "min_accuracy": 0.0,
        "max_new_tokens": 2,
    }
    for label, one in recipe["defences"].items():
        recipe["defences"][label] = one = dict(one)
        one["train"] = {"steps": 1, "batch_size": 2, "rank": 2, "validate_every": 1}
        kind = one.get("defence") or label
        if kind == "safety_sft":
            one["settings"] = {"ratio": 1, "answer_tokens": 2}
        elif kind == "es2":
            one["settings"] = {"response_tokens": 2}
        elif kind == "dpl":
            one["settings"] = {"answer_tokens": 2}
    path = place.path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
