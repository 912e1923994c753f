"""Questions from files: what is accepted, and in which order choices stand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from es2.data.fitting import spread
from es2.data.questions import gpqa_questions, lettered_questions
from es2.errors import Es2Error

ROW: dict[str, Any] = {
    "question": "Which knot holds?",
    "options": ["reef", "granny", "bowline"],
    "answer": "C",
    "answer_index": 2,
    "category": "sailing",
}


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gpqa_row(question: str) -> dict[str, Any]:
    wrong = {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
    return {"Question": question, "Correct Answer": "right", **wrong}


def test_a_row_in_mmlu_pros_format_becomes_a_question(tmp_path: Path) -> None:
    (question,) = lettered_questions(lines(tmp_path / "a.jsonl", ROW))
    assert question.options[question.answer] == "bowline"
    assert question.subject == "sailing"


@pytest.mark.parametrize("without", ["answer", "answer_index", "category"])
def test_letter_or_index_is_enough_and_the_subject_may_be_missing(
    tmp_path: Path, without: str
) -> None:
    row = {key: value for key, value in ROW.items() if key != without}
    (question,) = lettered_questions(lines(tmp_path / "a.jsonl", row))
    assert question.answer == 2


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"answer": "B"}, "do not name one"),
        ({"answer": "D", "answer_index": 3}, "do not name one"),
        ({"answer": "C)"}, "do not name one"),
        ({"answer": None, "answer_index": None}, "do not name one"),
        ({"options": ["one"]}, "2 to 26"),
        ({"options": "reef, granny"}, "2 to 26"),
        ({"question": " "}, "'question' holds no text"),
        ({"options": ["reef", "", "bowline"]}, "'options' holds no text"),
    ],
)
def test_a_row_that_is_no_question_is_told_by_its_line(
    tmp_path: Path, change: dict[str, Any], phrase: str
) -> None:
    path = lines(tmp_path / "a.jsonl", ROW, ROW | change)
    with pytest.raises(Es2Error, match=r"a\.jsonl, line 2") as caught:
        lettered_questions(path)
    assert phrase in str(caught.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(Es2Error, match="no column 'options' among question"):
        lettered_questions(lines(tmp_path / "a.jsonl", {"question": "Why?"}))
    with pytest.raises(Es2Error, match="no column 'Correct Answer'"):
        gpqa_questions(str(lines(tmp_path / "b.jsonl", {"Question": "Why?"})))


def test_gpqas_right_answer_is_followed_through_the_shuffle(tmp_path: Path) -> None:
    path = lines(tmp_path / "g.jsonl", *(gpqa_row(f"What is {n}?") for n in range(200)))
    questions = gpqa_questions(str(path))
    assert all(question.options[question.answer] == "right" for question in questions)
    assert all(len(set(question.options)) == 4 for question in questions)
    places = Counter(question.answer for question in questions)
    assert min(places.values()) > 30  # a fair draw of 200 over four places


def test_gpqas_order_is_the_questions_own_whatever_stands_beside_it(tmp_path: Path) -> None:
    texts = [f"What is {n}?" for n in range(6)]
    forth = gpqa_questions(str(lines(tmp_path / "f.jsonl", *map(gpqa_row, texts))))
    back = gpqa_questions(str(lines(tmp_path / "b.jsonl", *map(gpqa_row, texts[::-1]))))
    assert forth == back[::-1]


def test_gpqas_right_answer_may_read_like_a_wrong_one(tmp_path: Path) -> None:
    row = gpqa_row("Why?") | {"Incorrect Answer 2": "right"}
    (question,) = gpqa_questions(str(lines(tmp_path / "g.jsonl", row)))
    assert question.options[question.answer] == "right"


def test_a_limit_draws_from_all_subjects_of_a_sorted_file(tmp_path: Path) -> None:
    rows = [ROW | {"category": f"subject {n // 30}"} for n in range(420)]
    questions = lettered_questions(lines(tmp_path / "a.jsonl", *rows))
    drawn = Counter(question.subject for question in spread(questions, 28))
    assert set(drawn.values()) == {2} and len(drawn) == 14
    assert spread(questions, 1000) == questions
