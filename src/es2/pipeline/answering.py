"""Answering prompts that nobody attacks with: prompts in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from es2.attacks.base import Attempt
from es2.attacks.budget import metered
from es2.capability.over_refusal import answer_prompts
from es2.data.sources import Prompt
from es2.judges.coherence import CalibratedJudge
from es2.models.loading import ChatModel
from es2.pipeline.asked import check_prompts
from es2.progress import bar
from es2.results.store import Kind, append_attempts, attempt_record, read_attempts


def half(prompt: Prompt) -> Kind:
    """The half of an over-refusal set that a prompt belongs to."""
    return "unsafe" if prompt.harmful else "safe"


def measure_answers(
    defence: str,
    chat: ChatModel,
    judge: CalibratedJudge,
    prompts: Sequence[Prompt],
    kinds: Sequence[Kind],
    answer_tokens: int,
    run: Path,
    setting: str = "",
) -> None:
    """Answers prompts, judges the answers, and appends them to `attempts.jsonl`.

    A record's `details` hold the prompt's category and whether the answer refuses in full or in part.
    If a kill has left some of them, all are answered again, in the same batches and so to the last
    digit as they would have been; none is recorded twice.

    Args:
        defence: the model's name in the records.
        chat: the model.
        judge: the undefended model and its limits.
        prompts: to be answered as they are.
        kinds: each prompt's kind in the records.
        answer_tokens: length of an answer.
        run: the run folder.
        setting: names the set where a folder holds several.

    Raises:
        Es2Error: if the folder holds answers to other prompts of that kind or set.
    """
    known = [
        record
        for record in read_attempts(run)
        if record["kind"] != "attack"
        and (record["defence"], record["setting"]) == (defence, setting)
        and (setting or record["kind"] in kinds)
    ]
    check_prompts(known, prompts, kinds, f"{setting or ' and '.join(sorted(set(kinds)))} prompts")
    done = {record["prompt_id"] for record in known}
    if all(prompt.id in done for prompt in prompts):
        return
    title = f"{setting or ' and '.join(sorted(set(kinds)))} prompts to {defence}"
    with bar(title, len(prompts)) as advance, metered(chat) as spent:
        answers = answer_prompts(chat, judge, prompts, answer_tokens, advance)
    budget = spent.among(len(prompts))
    append_attempts(
        run,
        [
            attempt_record(
                defence,
                kind,
                Attempt(
                    "none",
                    setting,
                    "prompt text",
                    prompt.id,
                    prompt.text,
                    one.completion,
                    budget,
                    details={"category": prompt.category, "answer": one.answer},
                ),
                one.judgement,
            )
            for prompt, kind, one in zip(prompts, kinds, answers, strict=True)
            if prompt.id not in done
        ],
    )
