"""Benchmarks through the harness: its own tasks, and questions of a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from es2.capability import lm_eval
from es2.capability.lm_eval import evaluate, load_tasks
from es2.data.questions import LETTERS, Question
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from invented import SUBJECTS, rows
from tiny import chances

QUESTIONS = [
    Question(r["question"], tuple(r["options"]), r["answer_index"], r["category"]) for r in rows()
]


def letter_chances(chat: ChatModel, question: Question) -> list[float]:
    """Log-probabilities of the letters, by the model's own forward, one question alone."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False)]
    row = chat.template.encode("\n".join([question.text, *lines, "Answer:"]))
    last = chances(chat, row)[-1]
    ids = [chat.template.encode_response(letter) for letter in LETTERS[: len(lines)]]
    assert all(len(one) == 1 for one in ids)
    return [float(last[one[0]]) for one in ids]


def test_the_likeliest_letter_after_the_templated_question_is_the_choice(chat: ChatModel) -> None:
    (task,) = load_tasks([], {"boats": QUESTIONS})
    items = evaluate(chat, task)
    assert [item.index for item in items] == list(range(12)) and task.shots == 0
    for item, question in zip(items, QUESTIONS, strict=True):
        expected = torch.tensor(letter_chances(chat, question))
        assert item.loglikelihoods is not None and len(item.loglikelihoods) == len(expected)
        found = torch.tensor(item.loglikelihoods)
        # The harness counts a newline before the letter, which is the same for all letters.
        assert torch.allclose(found - found[0], expected - expected[0], atol=1e-4)
        assert item.choice == LETTERS[int(expected.argmax())]
        assert item.correct == (int(expected.argmax()) == question.answer)
        assert item.subject == question.subject and item.unparsed is None


def test_items_keep_their_names_whatever_model_answers(
    shared: Callable[[str], ChatModel],
) -> None:
    (task,) = load_tasks([], {"boats": QUESTIONS})
    one, two = (evaluate(shared(family), task) for family in ("llama", "qwen3"))
    assert [item.item for item in one] == [item.item for item in two]
    assert len({item.item for item in one}) == 12
    assert [item.loglikelihoods for item in one] != [item.loglikelihoods for item in two]


def test_without_a_template_the_plain_text_is_scored(shared: Callable[[str], ChatModel]) -> None:
    (task,) = load_tasks([], {"boats": QUESTIONS[:3]})
    templated = evaluate(shared("llama"), task)
    plain = evaluate(shared("llama"), task, chat_template=False)
    assert [item.item for item in plain] == [item.item for item in templated]
    assert plain[0].loglikelihoods != templated[0].loglikelihoods


def test_a_group_is_one_benchmark_with_its_tasks_as_subjects(
    shared: Callable[[str], ChatModel], harness_tasks: Path
) -> None:
    tasks = load_tasks(["fleet"], {}, harness_tasks)
    assert [(t.benchmark, t.subject, t.shots) for t in tasks] == [("fleet", s, 2) for s in SUBJECTS]
    items = evaluate(shared("llama"), tasks[0], limit=4)
    assert [item.subject for item in items] == ["beekeeping"] * 4 and tasks[0].items(4) == 4
    assert {item.metric for item in items} == {"acc_norm"}
    assert [item.choice in rows()[item.index]["options"] for item in items] == [True] * 4


def test_both_models_get_the_same_solved_examples(
    shared: Callable[[str], ChatModel], harness_tasks: Path
) -> None:
    task = load_tasks(["fleet"], {}, harness_tasks)[0]
    assert evaluate(shared("llama"), task) == evaluate(shared("llama"), task)


def test_a_written_answer_without_a_letter_is_unparsed_and_not_correct(
    shared: Callable[[str], ChatModel], harness_tasks: Path
) -> None:
    (task,) = load_tasks(["written"], {}, harness_tasks)
    chat = shared("llama")
    items = evaluate(chat, task)
    assert task.generates and {item.unparsed for item in items} == {True, False}
    for item in items:
        assert item.loglikelihoods is None
        assert (item.choice is None) == item.unparsed
        assert item.choice is None or item.choice in "ABCDabcd"
        assert not (item.unparsed and item.correct)


def test_a_task_that_extracts_nothing_does_not_tell_what_is_unparsed(
    shared: Callable[[str], ChatModel], harness_tasks: Path
) -> None:
    (task,) = load_tasks(["unread"], {}, harness_tasks)
    assert {item.unparsed for item in evaluate(shared("llama"), task, limit=2)} == {None}


def test_an_unknown_task_is_told(harness_tasks: Path) -> None:
    with pytest.raises(Es2Error, match="no task 'flete'"):
        load_tasks(["flete"], {}, harness_tasks)


def test_data_out_of_reach_is_told(harness_tasks: Path) -> None:
    with pytest.raises(Es2Error, match="gpqa_main_zeroshot: cannot be loaded"):
        load_tasks(["gpqa_main_zeroshot"], {}, harness_tasks)


def test_a_file_may_not_be_called_as_a_task(harness_tasks: Path) -> None:
    with pytest.raises(Es2Error, match="asked for twice"):
        load_tasks(["written"], {"written": QUESTIONS}, harness_tasks)


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    with pytest.raises(Es2Error, match=r"es2\[lm-eval\]"):
        load_tasks([], {"boats": QUESTIONS})
