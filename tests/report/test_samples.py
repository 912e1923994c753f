"""Samples are picked by rule, and what may be harmful is veiled."""

import pytest
from synthetic import results

from es2.report.samples import sample, visible
from es2.results.schema import Results


@pytest.fixture
def parsed():
    return Results.model_validate(results())


def attempt(place, verdict, **changed):
    line = {
        "defence": "es2",
        "kind": "attack",
        "attack": "direct",
        "setting": "",
        "prompt_id": f"p{place}",
        "prompt": f"request {place}",
        "completion": f"answer {place}",
        "judgement": {"verdict": verdict, "keyword_refused": False, "perplexity": 3.0},
    }
    return line | changed


def test_first_prompt_of_each_verdict_is_shown(parsed):
    verdicts = ["refused", "refused", "complied", "refused", "incoherent", "complied"]
    [group] = sample([attempt(i, verdict) for i, verdict in enumerate(verdicts)], parsed)
    assert [s.prompt for s in group.samples] == ["request 0", "request 2", "request 4"]


def test_failures_are_never_crowded_out(parsed):
    lines = [attempt(i, "refused", defence=f"d{i}") for i in range(9)]
    [group] = sample([*lines, attempt(9, "complied")], parsed)
    assert "request 9" in [s.prompt for s in group.samples]


def test_models_answers_to_one_prompt_stand_together_base_first(parsed):
    lines = [attempt(0, "refused"), attempt(0, "complied", defence="base")]
    [group] = sample(lines, parsed)
    assert [answer.defence for answer in group.samples[0].answers] == ["base", "es2"]


def test_only_the_reported_setting_is_sampled(parsed):
    lines = [
        attempt(i, "complied", attack="scav", setting=setting)
        for i, setting in enumerate(("p0=0.05", "p0=1e-05"))
    ]
    [group] = sample(lines, parsed)
    assert [s.prompt for s in group.samples] == ["request 1"]


@pytest.mark.parametrize(
    "kind,verdict,veiled",
    [
        ("attack", "complied", True),
        ("attack", "", True),
        ("attack", "refused", False),
        ("attack", "incoherent", False),
        ("harmless", "complied", False),
        ("borderline", "complied", False),
    ],
)
def test_answers_that_may_be_harmful_are_veiled(parsed, kind, verdict, veiled):
    [group] = sample([attempt(0, verdict, kind=kind)], parsed)
    assert group.samples[0].answers[0].veiled is veiled


def test_long_completion_is_cut_and_says_by_how_much(parsed):
    [group] = sample([attempt(0, "refused", completion="x" * 5000)], parsed)
    [answer] = group.samples[0].answers
    assert len(answer.text) + answer.cut == 5000
    assert answer.cut > 0


def test_attempt_without_a_judgement_is_still_shown(parsed):
    [group] = sample([attempt(0, "", judgement=None, completion=None)], parsed)
    assert group.samples[0].answers[0].text == ""


def test_control_characters_become_visible_signs():
    assert visible("a\x00\x1b[0m\x7f\tb\nc") == "a␀␛[0m␡\tb\nc"


def test_an_answer_to_an_unsafe_prompt_is_veiled():
    lines = [
        {
            "defence": "base",
            "kind": kind,
            "prompt_id": kind,
            "prompt": kind,
            "completion": "text",
            "judgement": {"verdict": "complied"},
        }
        for kind in ("safe", "unsafe")
    ]
    groups = sample(lines, Results(defences={}))
    veiled = {group.key: group.samples[0].answers[0].veiled for group in groups}
    assert veiled == {"safe": False, "unsafe": True}
