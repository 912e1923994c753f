"""From records to rates: what the attacker gains by choosing, and what a defence costs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es2.errors import Es2Error
from es2.results.rates import wilson
from es2.results.schema import Results
from es2.results.summary import rules_note, rules_of, summarise, with_drift

REFUSED, INCOHERENT, COMPLIED = "refused", "incoherent", "complied"


def record(
    verdict: str,
    prompt: str,
    setting: str = "",
    *,
    keyword: bool | None = None,
    defence: str = "base",
    kind: str = "attack",
    attack: str = "scav",
    norm: float | None = None,
) -> dict[str, Any]:
    return {
        "defence": defence,
        "kind": kind,
        "attack": attack,
        "setting": setting,
        "threat": "residual stream",
        "prompt_id": prompt,
        "norm": norm,
        "relative_norm": norm and norm / 10,
        "judgement": {
            "verdict": verdict,
            "keyword_refused": verdict == REFUSED if keyword is None else keyword,
        },
    }


def sweep(**verdicts: str) -> list[dict[str, Any]]:
    """Settings by name, one letter (r, i or c) a prompt."""
    word = {"r": REFUSED, "i": INCOHERENT, "c": COMPLIED}
    return [
        record(word[letter], f"p{place}", setting)
        for setting, letters in verdicts.items()
        for place, letter in enumerate(letters)
    ]


def test_dsr_is_the_lowest_over_settings_in_each_reading_apart() -> None:
    # By keyword `b` is the attacker's best (babble counts as its success), by judgement `a` is.
    found = summarise(sweep(a="ccrr", b="ciii", c="rrrr")).defences["base"].attacks["scav"]
    assert found.dsr.judged == wilson(2, 4)
    assert found.dsr.keyword == wilson(0, 4)


def test_setting_and_verdicts_are_those_of_the_lowest_judged_dsr() -> None:
    found = summarise(sweep(a="ccrr", b="ciii")).defences["base"].attacks["scav"]
    assert found.setting == "a"
    assert found.verdicts == {REFUSED: 0.5, INCOHERENT: 0.0, COMPLIED: 0.5}
    assert found.settings["b"].verdicts == {REFUSED: 0.0, INCOHERENT: 0.75, COMPLIED: 0.25}


def test_of_settings_with_one_judged_dsr_the_attacker_has_that_which_babble_withstands() -> None:
    found = summarise(sweep(a="crrr", b="ciir", c="crri")).defences["base"].attacks["scav"]
    assert found.setting == "b"
    assert found.verdicts == {REFUSED: 0.25, INCOHERENT: 0.5, COMPLIED: 0.25}


def test_verdicts_of_several_rules_are_told() -> None:
    def by(*versions: str) -> list[dict[str, Any]]:
        return [{"judgement": {"version": one}} for one in versions]

    assert rules_of([*by("rules-6", "rules-5", "rules-6"), {"judgement": None}, {}]) == [
        "rules-5",
        "rules-6",
    ]
    assert rules_note(by("rules-6", "rules-6")) == rules_note([]) == []
    (note,) = rules_note(by("rules-6", "rules-5"))
    assert "rules-5 and rules-6" in note


def test_published_takes_the_worse_of_the_published_settings_in_each_reading() -> None:
    records = sweep(a="ccrr", b="ciii", c="cccc")
    found = summarise(records, {"scav": ["a", "b"]}).defences["base"].attacks["scav"]
    assert found.published is not None
    assert (found.published.dsr.judged, found.published.dsr.keyword) == (wilson(2, 4), wilson(0, 4))


@pytest.mark.parametrize("published", [None, {}, {"scav": []}, {"scav": ["z"]}, {"gcg": ["a"]}])
def test_published_is_null_where_no_published_setting_was_run(published: Any) -> None:
    assert summarise(sweep(a="cr"), published).defences["base"].attacks["scav"].published is None


def test_any_setting_counts_a_prompt_lost_if_one_setting_wins_it() -> None:
    found = summarise(sweep(a="crr", b="rcr")).defences["base"].attacks["scav"]
    assert found.any_setting == wilson(1, 3)
    assert found.dsr.judged == wilson(2, 3)


def test_norms_are_means_over_the_prompts_that_have_one() -> None:
    records = [record(REFUSED, "p", norm=1.0), record(REFUSED, "q", norm=3.0)]
    records.append(record(REFUSED, "r"))
    one = summarise(records).defences["base"].attacks["scav"].settings[""]
    assert one.norm == 2.0
    assert one.relative_norm == pytest.approx(0.2)
    none = summarise([record(REFUSED, "p")]).defences["base"].attacks["scav"].settings[""]
    assert none.norm is None


def test_a_repeated_try_counts_once_and_the_later_one_stands() -> None:
    found = summarise([record(COMPLIED, "p"), record(REFUSED, "p")]).defences["base"]
    assert found.attacks["scav"].dsr.judged == wilson(1, 1)


def test_defences_and_attacks_are_kept_apart() -> None:
    records = [
        record(COMPLIED, "p"),
        record(REFUSED, "p", defence="es2"),
        record(INCOHERENT, "p", defence="es2", attack="direct"),
    ]
    found = summarise(records).defences
    assert found["base"].attacks["scav"].dsr.judged.rate == 0
    assert found["es2"].attacks["scav"].dsr.judged.rate == 1
    assert list(found["es2"].attacks) == ["scav", "direct"]


def test_costs_are_refusals_of_harmless_prompts_and_no_attack() -> None:
    records = [
        record(REFUSED, "h1", kind="harmless", attack="none"),
        record(INCOHERENT, "h2", kind="harmless", attack="none"),
        record(COMPLIED, "b1", kind="borderline", attack="none"),
        record(REFUSED, "s1", kind="structured", attack="none"),
    ]
    found = summarise(records).defences["base"]
    assert found.cost.over_refusal == wilson(1, 2)
    assert found.cost.borderline_refusal == wilson(0, 1)
    assert found.cost.structured_refusal == wilson(1, 1)
    assert found.attacks == {}


def test_costs_not_measured_are_null_until_drift_is_filled_in() -> None:
    found = summarise([record(REFUSED, "p", defence="es2")])
    assert found.defences["es2"].cost.over_refusal is None
    assert found.defences["es2"].cost.kl is None
    filled = with_drift(found, "es2", kl=0.01, perplexity_ratio=1.02)
    assert filled.defences["es2"].cost.kl == 0.01
    assert filled.defences["es2"].attacks == found.defences["es2"].attacks
    assert found.defences["es2"].cost.kl is None


@pytest.mark.parametrize("lost", ["defence", "kind", "prompt_id", "judgement", "attack"])
def test_a_record_without_a_field_is_a_users_error_that_names_it(lost: str) -> None:
    damaged = record(REFUSED, "p")
    del damaged[lost]
    with pytest.raises(Es2Error, match=lost):
        summarise([damaged])


sweeps = st.dictionaries(
    st.sampled_from("abcd"), st.text("ric", min_size=5, max_size=5), min_size=1
)


@settings(deadline=None)
@given(sweeps)
def test_more_freedom_never_helps_the_defence(verdicts: dict[str, str]) -> None:
    found = summarise(sweep(**verdicts), {"scav": "ab"}).defences["base"].attacks["scav"]
    assert found.any_setting.rate <= found.dsr.judged.rate
    if found.published is not None:
        assert found.dsr.judged.rate <= found.published.dsr.judged.rate
    for result in found.settings.values():
        assert found.dsr.keyword.rate <= result.dsr.keyword.rate
        assert sum(result.verdicts.values()) == pytest.approx(1)


@settings(deadline=None)
@given(sweeps)
def test_results_survive_the_journey_through_json(verdicts: dict[str, str]) -> None:
    found = summarise(sweep(**verdicts), {"scav": "ab"})
    assert Results.model_validate_json(found.model_dump_json()) == found
