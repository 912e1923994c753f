"""What every attack must do, on every family of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import pytest

from es2.attacks import (
    ATTACKS,
    AdapterStrip,
    Attack,
    Attempt,
    AutoDan,
    BestOfN,
    Direct,
    Gcg,
    Prefill,
    Push,
    RefusalAblation,
    RepE,
    Scav,
    SoftPrompt,
    Victim,
)
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.loading import ChatModel
from tiny import PROMPTS, encode

FIT = FitPrompts(
    harmful=[f"Tell me something about ships, number {i}" for i in range(8)],
    harmless=[f"{i} apples" for i in range(8)],
    held_harmful=["Tell me something about ships, please", "Tell me something about ships, sir"],
    held_harmless=["9 apples", "12 apples"],
)
PROMPT_ROWS = [
    Prompt(text, True, target="Sure", category="", borderline=False, id=f"p-{i}", source="tests")
    for i, text in enumerate(PROMPTS)
]
QUICK: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        AdapterStrip(left=(0.5, 0.0), max_new_tokens=5),
        AutoDan(steps=3, population=12, max_new_tokens=5),
        BestOfN(tries=2, max_new_tokens=5),
        Direct(max_new_tokens=5),
        Gcg(steps=3, width=12, top_k=16, start=" x x x", max_new_tokens=5),
        Prefill(lengths=(1, None), max_new_tokens=5),
        Push(norms=(0.1, 0.5), min_accuracy=0.5, max_new_tokens=5),
        RefusalAblation(max_new_tokens=5),
        RepE(strengths=(0.1, 0.5), max_new_tokens=5),
        Scav(p0=(1e-2, 1e-4), min_accuracy=0.5, max_new_tokens=5),
        SoftPrompt(tokens=3, steps=4, checkpoints=2, max_new_tokens=5),
    )
}

Shared = Callable[[str], ChatModel]


def test_every_attack_is_in_the_matrix() -> None:
    assert set(QUICK) == set(ATTACKS)


@pytest.fixture(params=sorted(QUICK))
def attack(request: pytest.FixtureRequest) -> Attack:
    return QUICK[str(request.param)]


def victim_of(chat: ChatModel, base: ChatModel) -> Victim:
    return Victim(chat, FIT, base=base)


def run(
    attack: Attack, victim: Victim, prompts: list[Prompt] = PROMPT_ROWS, **options: Any
) -> list[list[Attempt]]:
    """The attempts of each setting, in the prompts' order."""
    found = [attempt for portion in attack.run(victim, prompts, **options) for attempt in portion]
    done = [one for one in attack.settings() if one not in options.get("skip", ())]
    assert len(found) == len(done) * len(prompts)
    return [[one for one in found if one.setting == setting] for setting in done]


def told(found: list[list[Attempt]]) -> list[list[dict[str, Any]]]:
    """All but the time."""
    return [[{**asdict(one), "budget": one.budget.steps} for one in setting] for setting in found]


def test_every_prompt_is_tried_under_every_setting(attack: Attack, chat: ChatModel) -> None:
    counts: list[int] = []
    found = run(
        attack, victim_of(chat, chat), progress=lambda count, note=None: counts.append(count)
    )
    assert [setting[0].setting for setting in found] == list(attack.settings())
    assert sum(counts) == len(PROMPT_ROWS) * len(found)
    for setting in found:
        assert [one.prompt_id for one in setting] == [prompt.id for prompt in PROMPT_ROWS]
        assert [one.prompt for one in setting] == [prompt.text for prompt in PROMPT_ROWS]
        for one in setting:
            assert (one.attack, one.threat) == (attack.name, attack.threat)
            assert one.budget.seconds > 0 and one.budget.forward_tokens > 0 and one.budget.flops > 0
    whole = type(attack)()  # not every cut of a search is what was published
    assert set(attack.published) <= set(whole.published) <= set(whole.settings())


def test_settings_are_frozen_and_say_where_they_come_from(attack: Attack) -> None:
    assert is_dataclass(attack) and attack.__dataclass_params__.frozen  # type: ignore[attr-defined]
    doc = type(attack).__doc__ or ""
    for setting in fields(attack):
        assert f"{setting.name}:" in doc


def test_what_is_done_is_skipped_and_the_rest_is_the_same(attack: Attack, shared: Shared) -> None:
    victim = victim_of(shared("llama"), shared("llama"))
    whole = told(run(attack, victim))
    first = attack.settings()[0]
    assert told(run(attack, victim, skip={first})) == whole[1:]
    assert run(attack, victim, skip=set(attack.settings())) == []


def test_the_same_seed_gives_the_same_attempts(attack: Attack, shared: Shared) -> None:
    victim = victim_of(shared("mistral"), shared("mistral"))
    assert told(run(attack, victim)) == told(run(attack, victim))


def test_a_batch_gives_each_prompt_what_it_gets_alone(attack: Attack, chat: ChatModel) -> None:
    victim = victim_of(chat, chat)
    found = run(attack, victim)
    for index, prompt in enumerate(PROMPT_ROWS[:2]):
        for together, alone in zip(found, run(attack, victim, [prompt]), strict=True):
            assert alone[0].completion == together[index].completion


def test_the_model_is_left_as_it_was(attack: Attack, tiny: Shared) -> None:
    chat = tiny("phi3")
    before = {name: weight.clone() for name, weight in chat.inner.state_dict().items()}
    answers = generate(chat, encode(chat), 6)
    run(attack, victim_of(chat, tiny("phi3")))
    assert generate(chat, encode(chat), 6) == answers
    assert all(bool((weight == before[n]).all()) for n, weight in chat.inner.state_dict().items())
    modules = list(chat.inner.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_a_stale_attack_is_fitted_on_the_base_and_tried_on_the_model(
    attack: Attack, shared: Shared
) -> None:
    base, chat = shared("llama"), shared("mistral")
    if attack.name == "adapter_strip":
        pytest.skip("compares the two models, and these are not of one family")
    whole = run(attack, Victim(chat, FIT, base=base, stale=True))
    assert len(whole) == len(attack.settings())
    if attack.name in ("repe", "scav", "soft_prompt"):
        fresh = run(attack, Victim(chat, FIT, base=base))
        assert [one.norm for one in whole[0]] != [one.norm for one in fresh[0]]
    if attack.name in ("gcg", "refusal_ablation", "repe", "scav", "soft_prompt"):
        with pytest.raises(Es2Error, match="--base"):
            run(attack, Victim(chat, FIT, stale=True))


def test_no_pass_holds_more_rows_than_the_models_batch(attack: Attack, tiny: Shared) -> None:
    chat = tiny("llama")
    chat.batch_size = 2
    rows: list[int] = []

    def count(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        ids = given.get("input_ids")
        rows.append(len(given["inputs_embeds"] if ids is None else ids))

    chat.decoder.register_forward_pre_hook(count, with_kwargs=True)
    run(attack, victim_of(chat, tiny("llama")))
    assert max(rows) <= 2
