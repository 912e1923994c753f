"""Judges without a model or the network, and how any judge is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from es2.errors import Es2Error
from es2.judges import JUDGES, Judge, Keywords, Means, Refusal, Rules, make, make_all
from es2.judges.base import Judgement, Opinion
from es2.judges.coherence import CalibratedJudge
from es2.judges.refusal import KEYWORDS, keyword_refusal, refuses

TEXTS = ("I cannot help with that.", "Knead it. Never rush.", "", "She said: I cannot.")


def opinions(name: str, texts: Sequence[str] = TEXTS) -> list[Opinion]:
    done: list[int] = []
    found = make(name, Means())(["How do I bake bread?"] * len(texts), texts, done.append)
    assert sum(done) == len(texts)
    return found


def test_refusal_is_the_anchored_rule() -> None:
    found = opinions("refusal")
    assert [o.verdict == "refused" for o in found] == [refuses(text) for text in TEXTS]
    assert [o.harmful for o in found] == [not refuses(text) for text in TEXTS]


@pytest.mark.parametrize("listed", KEYWORDS)
def test_every_published_list_is_a_judge(listed: str) -> None:
    found = opinions(f"keywords:{listed}")
    assert {o.judge for o in found} == {f"keywords:{listed}"}
    for text, given in zip(TEXTS, found, strict=True):
        assert given.verdict == ("refused" if keyword_refusal(text, listed) else "complied")


def test_an_unknown_list_names_those_there_are() -> None:
    with pytest.raises(Es2Error, match="jailbreakbench, gcg, autodan"):
        make("keywords:gcgg", Means())


class Fixed(CalibratedJudge):
    """Judgements that are given beforehand."""

    def __init__(self, found: list[Judgement]):
        object.__setattr__(self, "found", found)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Judgement]:
        return self.found  # type: ignore[attr-defined,no-any-return]


def test_rules_has_three_verdicts_and_its_numbers_as_json() -> None:
    judged = [
        Judgement("refused", True, 2.5, 0.0, 0.3),
        Judgement("incoherent", False, None, 0.0, None),
        Judgement("complied", False, 3.0, 0.1, 0.9),
    ]
    judge = Rules(lambda: Fixed(judged))
    found = judge(["p"] * 3, ["a", "", "c"])
    assert [o.verdict for o in found] == ["refused", "incoherent", "complied"]
    assert [o.harmful for o in found] == [False, False, True]
    assert json.loads(found[2].raw)["relevance"] == 0.9 and " " not in found[2].raw
    assert [judge.opinion(asdict(one)) for one in judged] == found


def test_rules_loads_no_model_before_it_has_to_judge() -> None:
    def load() -> CalibratedJudge:
        raise AssertionError("loaded")

    assert make("rules", Means(coherence=load)).name == "rules"


def test_every_judge_says_what_it_is_and_fits_the_protocol() -> None:
    assert {"refusal", "keywords", "rules", "harmbench", "llama_guard", "wildguard"} < set(JUDGES)
    for name, kind in JUDGES.items():
        assert kind.name == name and kind.needs and kind.__doc__
    assert isinstance(Refusal(), Judge) and isinstance(Keywords("gcg"), Judge)


def test_a_dash_in_a_name_is_as_good_as_an_underscore() -> None:
    assert make("llama-guard", Means()).name == "llama_guard"


def test_unknown_and_repeated_judges_are_refused() -> None:
    with pytest.raises(Es2Error, match="unknown judge 'oracle'; there are harmbench"):
        make_all(["refusal", "oracle"], Means())
    with pytest.raises(Es2Error, match="'refusal'"):
        make_all(["refusal", "refusal"], Means())
    with pytest.raises(Es2Error, match="nothing behind a colon"):
        make("refusal:x", Means())


def test_an_opinion_holds_either_a_reading_or_an_error() -> None:
    given = opinions("refusal", ["Knead it."])[0]
    assert given.error is None and given.harmful is not None
