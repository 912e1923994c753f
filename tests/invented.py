"""Invented questions, and a folder of tasks in lm-evaluation-harness's own YAML."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

SUBJECTS = ("beekeeping", "sailing")


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Questions in MMLU-Pro's format, with 2 to 4 options."""
    made = []
    for number in range(count):
        options = [f"{number + k} knots" for k in range(2 + number % 3)]
        answer = (number * 7) % len(options)
        made.append(
            {
                "question_id": number,
                "question": f"How fast is boat {number} when the bell rings {number % 5} times?",
                "options": options,
                "answer": "ABCD"[answer],
                "answer_index": answer,
                "category": SUBJECTS[number * 2 // count],
            }
        )
    return made


def questions_file(path: Path, count: int = 12) -> Path:
    """A JSONL file of them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)))
    return path


def gpqa_file(path: Path, count: int = 8) -> Path:
    """A CSV file in GPQA's format, all of it invented."""
    columns = ["Question", "Correct Answer", *(f"Incorrect Answer {k}" for k in (1, 2, 3))]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "High-level domain"])
        for n in range(count):
            asked = f"Which bell has {n} cracks, and why?"
            wrong = [f"wrong {k} of {n}" for k in (1, 2, 3)]
            writer.writerow([asked, f"right {n}", *wrong, ("Bells", "Boats")[n % 2]])
    return path


def task_folder(folder: Path) -> Path:
    """A group of two scored tasks, and a task that reads answers out of what is written."""
    folder.mkdir()
    for subject in SUBJECTS:
        path = folder / f"{subject}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows() if r["category"] == subject))
        (folder / f"{subject}.yaml").write_text(
            f"""
task: fleet_{subject}
task_alias: {subject}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{path}"}}}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{{{question}}}} Answer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer_index
metric_list: [{{metric: acc_norm, aggregation: mean, higher_is_better: true}}]
"""
        )
    (folder / "fleet.yaml").write_text(
        """
group: fleet
task: [fleet_beekeeping, fleet_sailing]
aggregate_metric_list: [{metric: acc_norm, aggregation: mean, weight_by_size: true}]
"""
    )
    write_answers = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder / "sailing.jsonl"}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["Question:"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    (folder / "written.yaml").write_text(
        f"""task: written{write_answers}
filter_list:
  - name: letter
    filter: [{{function: regex, regex_pattern: "([A-Da-d])"}}, {{function: take_first}}]
  - name: all
    filter: [{{function: take_first}}]
"""
    )
    (folder / "unread.yaml").write_text(f"task: unread{write_answers}")
    return folder
