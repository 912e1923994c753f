"""Answering an over-refusal set: prompts in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from es2.attacks.base import Attempt
from es2.attacks.budget import metered
from es2.capability.over_refusal import answer_prompts
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge
from es2.models.loading import ChatModel
from es2.progress import bar
from es2.results.store import append_attempts, attempt_record, read_attempts


def measure_over_refusal(
    defence: str,
    chat: ChatModel,
    judge: CalibratedJudge,
    name: str,
    prompts: Sequence[Prompt],
    answer_tokens: int,
    run: Path,
) -> None:
    """Answers a set's prompts and appends the answers to `attempts.jsonl`.

    A record's `kind` is the half (safe or unsafe), its `setting` the set; its `details` hold the
    category and what the answer is. If a kill has left some of them, all are answered again, in the
    same batches; none is recorded twice.

    Args:
        defence: the model's name in the records.
        chat: the model.
        judge: the undefended model and its limits.
        name: the set's.
        prompts: its prompts, both halves, see `load_set`.
        answer_tokens: length of an answer.
        run: the run folder.
    """
    done = {
        r["prompt_id"]
        for r in read_attempts(run)
        if r["kind"] in ("safe", "unsafe") and (r["defence"], r["setting"]) == (defence, name)
    }
    if all(prompt.id in done for prompt in prompts):
        return
    with bar(f"{name} to {defence}", len(prompts)) as advance, metered(chat) as spent:
        answers = answer_prompts(chat, judge, prompts, answer_tokens, advance)
    budget = spent.among(len(prompts))
    append_attempts(
        run,
        [
            attempt_record(
                defence,
                "unsafe" if prompt.harmful else "safe",
                Attempt(
                    "none",
                    name,
                    "prompt text",
                    prompt.id,
                    prompt.text,
                    one.completion,
                    budget,
                    details={"category": prompt.category, "answer": one.answer},
                ),
                one.judgement,
            )
            for prompt, one in zip(prompts, answers, strict=True)
            if prompt.id not in done
        ],
    )
