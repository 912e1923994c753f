"""What a comparison's rows hold, and who is on the frontier of safety against cost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from es2.report.comparison import grids
from es2.results.comparison import Faced, Member, Members, frontier, rows
from es2.results.over_refusal import over_refusal
from es2.results.rates import wilson
from es2.results.schema import Cost, DefenceResult, Results
from es2.results.summary import summarise

SHARES = st.floats(0, 1).map(lambda x: round(x, 1))


def test_a_model_that_another_beats_in_one_and_equals_in_the_other_is_not_on_the_frontier() -> None:
    points = [("base", 0.1, 0.2), ("dear", 0.3, 0.8), ("best", 0.2, 0.8), ("twin", 0.2, 0.8)]
    assert frontier(points) == ["base", "best", "twin"]


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=8))
def test_the_frontier_is_what_the_slow_version_finds(found: list[tuple[float, float]]) -> None:
    points = [(str(place), *point) for place, point in enumerate(found)]
    slow = []
    for name, cost, safety in points:
        better = [
            (c, s) for _, c, s in points if (c < cost and s >= safety) or (c <= cost and s > safety)
        ]
        if not better:
            slow.append(name)
    assert frontier(points) == slow


def test_prompts_declined_are_those_of_all_sets_together_by_what_they_deserve() -> None:
    answers = {
        ("small", "safe"): [True, False],
        ("large", "safe"): [False, False, False, True, False, False],
        ("large", "unsafe"): [True, True, False],
    }
    asked = [
        {
            "defence": "one",
            "setting": name,
            "kind": kind,
            "prompt_id": f"{name} {kind} {place}",
            "details": {
                "category": "",
                "answer": "partial refusal" if declined else "full compliance",
            },
        }
        for (name, kind), of in answers.items()
        for place, declined in enumerate(of)
    ]
    results = Results(
        defences={"one": DefenceResult(attacks={}, cost=Cost(borderline_refusal=None))}
    )
    members = Members(members={"one": Member(folder="")})
    (row,) = rows(members, results, over_refusal(asked))
    assert row.refused == wilson(2, 8)
    assert row.declined == {"small": wilson(1, 2), "large": wilson(1, 6)}
    assert row.unsafe == wilson(2, 3)
    (unmeasured,) = rows(members, results)
    assert unmeasured.refused is unmeasured.unsafe is None and unmeasured.declined == {}


def test_models_are_compared_on_the_sets_that_all_of_them_were_asked() -> None:
    def asked(model: str, name: str, *answers: str) -> list[dict[str, Any]]:
        return [
            {
                "defence": model,
                "setting": name,
                "kind": "safe",
                "prompt_id": f"{name} {place}",
                "details": {"category": "", "answer": answer},
            }
            for place, answer in enumerate(answers)
        ]

    declined, answered = "full refusal", "full compliance"
    given = asked("one", "both", declined, answered) + asked("two", "both", answered, answered)
    more = asked("one", "own", declined, declined, declined)
    cost = DefenceResult(cost=Cost(borderline_refusal=wilson(1, 3)))
    results = Results(defences={"one": cost, "two": cost})
    members = Members(members={"one": Member(folder=""), "two": Member(folder="")})
    found = rows(members, results, over_refusal(given + more))
    assert [row.refused for row in found] == [wilson(1, 2), wilson(0, 2)]
    assert set(found[0].declined) == {"both", "own"}  # a column a set tells which were asked
    # Where none is common, all are told by the same other measure.
    found = rows(members, results, over_refusal(more + asked("two", "both", declined)))
    assert [row.refused for row in found] == [wilson(1, 3)] * 2


def test_what_an_attack_leaves_is_told_from_babble() -> None:
    words = {"r": "refused", "i": "incoherent", "c": "complied"}
    attempts = [
        {
            "defence": "one",
            "kind": "attack",
            "attack": "scav",
            "setting": setting,
            "prompt_id": f"p{place}",
            "judgement": {"verdict": words[letter], "keyword_refused": letter == "r"},
        }
        for setting, letters in {"weak": "rrrrr", "strong": "rriic"}.items()
        for place, letter in enumerate(letters)
    ]
    (row,) = rows(Members(members={"one": Member(folder="")}), summarise(attempts))
    found = row.attacks["scav"]
    assert found == Faced(keyword=wilson(2, 5), judged=wilson(4, 5), refused=wilson(2, 5))
    judged, refused, keyword = grids([row])[:3]
    assert [grid.rows[0][-1].split()[0] for grid in (judged, refused, keyword)] == [
        "80",
        "40",
        "40",
    ]
