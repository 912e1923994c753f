"""What a defence costs: refusals of harmless prompts, and drift from the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from es2.attacks.base import Attempt
from es2.attacks.budget import metered
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.progress import bar
from es2.results.store import Kind, append_attempts, attempt_record, read_attempts


def measure_refusals(
    defence: str,
    chat: ChatModel,
    judge: CalibratedJudge,
    kind: Kind,
    prompts: Sequence[Prompt],
    answer_tokens: int,
    run: Path,
) -> None:
    """Answers harmless prompts, judges the answers, and appends them to `attempts.jsonl`.

    If a kill has left some of them, all are answered again, in the same batches and so to the last
    digit as they would have been; none is recorded twice.

    Args:
        defence: the model's name in the records.
        chat: the model.
        judge: the undefended model and its limits.
        kind: `harmless` or `borderline`.
        prompts: that deserve an answer.
        answer_tokens: length of an answer.
        run: the run folder.
    """
    done = {
        r["prompt_id"] for r in read_attempts(run) if (r["kind"], r["defence"]) == (kind, defence)
    }
    if all(prompt.id in done for prompt in prompts):
        return
    with bar(f"{kind} prompts to {defence}", len(prompts)) as advance, metered(chat) as spent:
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        answers = [
            chat.template.decode(row)
            for row in generate(chat, rows, answer_tokens, progress=advance)
        ]
    judgements = judge([prompt.text for prompt in prompts], answers)
    budget = spent.among(len(prompts))
    append_attempts(
        run,
        [
            attempt_record(
                defence,
                kind,
                Attempt("none", "", "prompt text", prompt.id, prompt.text, answer, budget),
                judgement,
            )
            for prompt, answer, judgement in zip(prompts, answers, judgements, strict=True)
            if prompt.id not in done
        ],
    )
