"""The hand labels that the judge is measured on: no texts, and no prompt both tuned on and held out."""

import json
from pathlib import Path

LABELS = Path(__file__).parents[2] / "benchmarks" / "judge_labels.jsonl"
FIELDS = {"model", "source", "setting", "prompt_id", "sha256", "label", "doubt", "split"}


def test_labels_name_completions_by_hash_and_split_prompts_in_two() -> None:
    labels = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    assert all(set(label) == FIELDS and len(label["sha256"]) == 64 for label in labels)
    tuned, held = (
        {label["prompt_id"] for label in labels if label["split"] == split}
        for split in ("tune", "held-out")
    )
    assert tuned and held and not tuned & held
