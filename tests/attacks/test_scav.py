"""SCAV's closed form, where it acts, and that a batch changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from es2.attacks.base import Attempt, Victim
from es2.attacks.scav import Meter, Scav, perturb, scav_edits
from es2.data.fitting import FitPrompts
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.activations import capture, edit
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.separation.probe import ClassStates, Probe, fit_probes
from tiny import PROMPTS, encode

FIT = FitPrompts(
    harmful=[f"Tell me something about ships, number {i}" for i in range(8)],
    harmless=[f"{i} apples" for i in range(8)],
    held_harmful=["Tell me something about ships, please", "Tell me something about ships, sir"],
    held_harmless=["9 apples", "12 apples"],
)
"""Two classes that even a random model tells apart; no harm is needed to test the mathematics."""

TARGETS = [
    Prompt(text, True, target=None, category="", borderline=False, id=f"t-{i}", source="tests")
    for i, text in enumerate(PROMPTS)
]


def some_probe(seed: int, d: int = 32) -> Probe:
    random = torch.Generator().manual_seed(seed)
    return Probe(torch.randn(d, generator=random), 0.3, 1.0)


def probability(probe: Probe, states: Tensor) -> Tensor:
    return probe.logit(states).double().sigmoid()


@given(p0=st.floats(1e-6, 0.5), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_states_above_p0_are_moved_to_p0_and_others_not_at_all(p0: float, seed: int) -> None:
    probe = some_probe(seed)
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(seed + 1)) * 3
    moved = perturb(states, probe, p0)
    above = probability(probe, states) > p0
    assert torch.equal(moved[~above], states[~above])
    found = probe.logit(moved[above])
    torch.testing.assert_close(
        found, torch.full_like(found, math.log(p0 / (1 - p0))), rtol=1e-4, atol=1e-4
    )


def test_the_move_is_the_papers_closed_form() -> None:
    # w = (3, 4), |w| = 5, b = 1; at e = (1, 1) the logit is 8.
    probe = Probe(torch.tensor([3.0, 4.0]), 1.0, 1.0)
    p0 = 1 / (1 + math.exp(2))  # its logit is -2
    (moved,) = perturb(torch.tensor([[1.0, 1.0]]), probe, p0)
    epsilon = (-2 - 1 - 7) / 5
    torch.testing.assert_close(moved, torch.tensor([1 + epsilon * 0.6, 1 + epsilon * 0.8]))


def test_no_other_move_to_p0_is_shorter() -> None:
    probe, p0 = some_probe(3), 1e-3
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)) + probe.w
    step = perturb(states, probe, p0) - states
    target = math.log(p0 / (1 - p0))
    random = torch.Generator().manual_seed(1)
    for _ in range(200):
        direction = torch.randn(6, 32, generator=random)
        # As far along this direction as it takes for the probe to say P0.
        reach = (target - probe.logit(states)) / (direction @ probe.w)
        other = reach[:, None] * direction
        torch.testing.assert_close(
            probe.logit(states + other), torch.full((6,), target), rtol=1e-2, atol=1e-2
        )
        assert (other.norm(dim=-1) >= step.norm(dim=-1) * (1 - 1e-5)).all()
        # And any move there has this step as its part along w.
        along = (other @ probe.w)[:, None] * probe.w / probe.w.dot(probe.w)
        torch.testing.assert_close(along, step, rtol=1e-3, atol=1e-3)


def test_moved_states_keep_their_type() -> None:
    states = torch.randn(3, 32).to(torch.bfloat16)
    assert perturb(states, some_probe(0), 0.01).dtype == torch.bfloat16


@pytest.mark.parametrize("p0", [0.05, 1e-4])
def test_the_probe_says_p0_at_its_hook_point_in_a_real_forward(chat: ChatModel, p0: float) -> None:
    rows = encode(chat)
    probes = {2: some_probe(1), 3: some_probe(2)}
    with torch.no_grad():
        for row in rows:
            edits = scav_edits(probes, p0, Meter())
            with edit(chat.blocks, edits), capture(chat.blocks, [1, 2, 3]) as attacked:
                chat.decoder(input_ids=torch.tensor([row]), use_cache=False)
            with capture(chat.blocks, [1, 2]) as plain:
                chat.decoder(input_ids=torch.tensor([row]), use_cache=False)
            # Below the attack nothing changes, nor does any token but the last at its first layer.
            assert torch.equal(attacked[1], plain[1])
            assert torch.equal(attacked[2][:, :-1], plain[2][:, :-1])
            for layer, probe in probes.items():
                found = float(probability(probe, attacked[layer][0, -1]))
                assert found <= p0 * 1.001
            before = float(probability(probes[2], plain[2][0, -1]))
            if before > p0:
                after = float(probability(probes[2], attacked[2][0, -1]))
                assert after == pytest.approx(p0, rel=1e-3)
            else:
                assert torch.equal(attacked[2], plain[2])


def test_every_generated_token_is_attacked_too(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("llama")
    probe, p0 = some_probe(1), 1e-3
    seen: list[Tensor] = []

    handle = chat.blocks[1].register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        generate(chat, encode(chat), 6, scav_edits({2: probe}, p0, Meter()))
    finally:
        handle.remove()
    # The first call is the shared prefix, which no edit reaches.
    last = [states[:, -1] for states in seen[1:]]
    assert len(last) >= 6
    for states in last:
        assert (probability(probe, states) <= p0 * 1.001).all()


def test_the_meter_takes_the_mean_over_the_moved_vectors() -> None:
    meter = Meter()
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    meter.add(before, before + torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]]))
    assert meter.means() == pytest.approx((3.0, 0.75))


def test_a_meter_that_saw_nothing_move_says_zero() -> None:
    meter = Meter()
    meter.add(torch.ones(2, 3), torch.ones(2, 3))
    assert meter.means() == (0.0, 0.0)


def separable_at(layers: set[int]) -> ClassStates:
    torch.manual_seed(0)
    groups = [torch.randn(count, 4, 8) for count in (40, 40, 40, 40)]
    for layer in layers:
        for harmful in (groups[0], groups[2]):
            harmful[:, layer - 1, 0] += 9
    return ClassStates(*groups)


def test_only_layers_with_an_accurate_probe_are_attacked() -> None:
    assert sorted(Scav(min_accuracy=0.9).probes(separable_at({2, 4}))) == [2, 4]
    assert sorted(Scav(min_accuracy=0.0).probes(separable_at({2}))) == [1, 2, 3, 4]


def test_no_accurate_probe_is_an_error_of_one_line() -> None:
    with pytest.raises(Es2Error, match=r"scav: no layer's probe .* 0\.9 .*the best: 0\.") as error:
        Scav().probes(separable_at(set()))
    assert "\n" not in str(error.value)


def test_probes_are_fitted_on_at_most_so_many_prompts_of_each_class() -> None:
    states = separable_at({1, 2})
    every_fourth = ClassStates(
        states.harmful[::4], states.harmless[::4], states.held_harmful, states.held_harmless
    )
    found, expected = Scav(fit=10).probes(states), fit_probes(every_fourth)
    assert sorted(found) == [1, 2]
    for layer, probe in found.items():
        assert torch.equal(probe.w, expected[layer].w)
        assert probe.accuracy == expected[layer].accuracy


def attempts(chat: ChatModel, attack: Scav, prompts: list[Prompt] = TARGETS) -> list[list[Attempt]]:
    return list(attack.run(Victim(chat, FIT), prompts))


def without_time(found: list[list[Attempt]]) -> list[list[dict[str, object]]]:
    return [[{**asdict(attempt), "budget": None} for attempt in setting] for setting in found]


def test_a_bound_shortens_the_step_and_keeps_its_direction() -> None:
    probe = some_probe(0)
    states = 3 * torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    free, bound = (perturb(states, probe, 1e-6, limit) - states for limit in (None, 0.05))
    lengths, most = free.norm(dim=-1), 0.05 * states.norm(dim=-1)
    torch.testing.assert_close(bound.norm(dim=-1), lengths.minimum(most), rtol=1e-3, atol=1e-5)
    assert (lengths > most).any()
    long = lengths > 0
    ways = torch.nn.functional.cosine_similarity(free[long], bound[long])
    torch.testing.assert_close(ways, torch.ones_like(ways), rtol=1e-3, atol=1e-3)


QUICK = Scav(p0=(0.05, 1e-4), min_accuracy=0.6, max_new_tokens=8)


def test_scav_runs_on_every_family_and_answers_every_prompt_under_every_setting(
    chat: ChatModel,
) -> None:
    found = attempts(chat, QUICK)
    assert [setting[0].setting for setting in found] == QUICK.settings() == ["p0=0.05", "p0=0.0001"]
    for setting in found:
        assert [attempt.prompt_id for attempt in setting] == [target.id for target in TARGETS]
        assert {attempt.threat for attempt in setting} == {"residual stream"}
        assert all(attempt.norm and attempt.relative_norm for attempt in setting)
    # A lower P0 is further away.
    assert found[1][0].norm > found[0][0].norm


def test_the_attack_is_refitted_on_the_model_it_attacks(shared: Callable[[str], ChatModel]) -> None:
    victims = [Victim(shared(family), FIT) for family in ("llama", "qwen2")]
    one, two = (QUICK.probes(victim.states) for victim in victims)
    layer = min(set(one) & set(two))
    assert not torch.allclose(one[layer].w, two[layer].w, atol=1e-3)


def test_a_batch_gives_each_prompt_what_it_gets_alone(chat: ChatModel) -> None:
    victim = Victim(chat, FIT)
    found = list(QUICK.run(victim, TARGETS))
    for index, target in enumerate(TARGETS[:3]):
        alone = list(QUICK.run(victim, [target]))
        assert [setting[0].completion for setting in alone] == [
            setting[index].completion for setting in found
        ]


def test_the_same_seed_gives_the_same_attempts(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("mistral")
    assert without_time(attempts(chat, QUICK)) == without_time(attempts(chat, QUICK))


def test_settings_that_are_done_are_skipped(shared: Callable[[str], ChatModel]) -> None:
    victim = Victim(shared("llama"), FIT)
    whole = without_time(list(QUICK.run(victim, TARGETS)))
    rest = without_time(list(QUICK.run(victim, TARGETS, skip={"p0=0.05"})))
    assert rest == whole[1:]
    assert list(QUICK.run(victim, TARGETS, skip=set(QUICK.settings()))) == []


def test_the_model_is_left_as_it_was(shared: Callable[[str], ChatModel]) -> None:
    chat = shared("phi3")
    before = generate(chat, encode(chat), 6)
    hooks = [len(block._forward_hooks) for block in chat.blocks]
    attempts(chat, QUICK)
    assert generate(chat, encode(chat), 6) == before
    assert [len(block._forward_hooks) for block in chat.blocks] == hooks
