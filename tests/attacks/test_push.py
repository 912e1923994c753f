"""A push moves each state by just the share asked for, along the directions it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from es2.attacks import Direct, Push, Scav, Victim
from es2.attacks.push import push, pushing, unit_directions
from es2.models.activations import capture, edit
from es2.models.loading import ChatModel
from planted import ASKED, FIT, REFUSAL, planted
from tiny import encode


@given(norm=st.floats(0.001, 2), seed=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_every_state_moves_by_that_share_of_its_norm(norm: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(20, 16, generator=random) * torch.rand(20, 1, generator=random) * 9
    way = torch.nn.functional.normalize(torch.randn(16, generator=random), dim=0)
    moved = push(states, way, norm) - states
    torch.testing.assert_close(moved.norm(dim=-1), norm * states.norm(dim=-1), rtol=1e-3, atol=1e-5)
    along = torch.nn.functional.cosine_similarity(moved, way.expand_as(moved), dim=-1)
    assert (along > 0.999).all()


def test_only_the_last_token_is_pushed_at_the_layers_given(chat: ChatModel) -> None:
    width = chat.inner.config.hidden_size
    way = torch.nn.functional.normalize(torch.arange(1.0, width + 1), dim=0)
    ids = torch.tensor([encode(chat)[0]])
    with torch.no_grad(), capture(chat.blocks, [2]) as before:
        chat.decoder(input_ids=ids)
    plain = before[2].clone()
    with (
        torch.no_grad(),
        edit(chat.blocks, pushing({2: way}, 0.5)),
        capture(chat.blocks, [2]) as after,
    ):
        chat.decoder(input_ids=ids)
    torch.testing.assert_close(after[2][:, :-1], plain[:, :-1])
    torch.testing.assert_close(after[2][:, -1], push(plain[:, -1], way, 0.5))


def test_directions_are_unit_vectors_at_the_layers_of_scav() -> None:
    chat, truth = planted()
    states = Victim(chat, FIT).states
    probes = Scav().probes(states)
    for name in ("scav", "repe", "random"):
        ways = unit_directions(name, probes, states, seed=0)
        assert ways.keys() == probes.keys()
        for way in ways.values():
            assert way.norm() == pytest.approx(1, abs=1e-4)
            if name != "random":
                assert way @ truth < -0.8  # away from harmful
    drawn = [unit_directions("random", probes, states, seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_planted_refusal_falls_to_its_own_direction_and_not_to_a_random_one() -> None:
    chat, _ = planted()
    attack = Push(norms=(0.01, 4.0), max_new_tokens=3)
    found: dict[str, list[str]] = {}
    for portion in attack.run(Victim(chat, FIT), ASKED):
        for one in portion:
            found.setdefault(one.setting, []).append(one.completion)
            assert one.relative_norm == float(one.setting.split("=")[1])
    refused = {name: sum(text.startswith(REFUSAL) for text in of) for name, of in found.items()}
    assert refused["none=0"] == refused["scav=0.01"] == len(ASKED)
    assert refused["scav=4"] == refused["repe=4"] == 0
    assert refused["random=0.01"] == len(ASKED)


def test_without_a_push_the_answers_are_the_models_own() -> None:
    chat, _ = planted()
    own = next(Direct(max_new_tokens=3).run(Victim(chat, FIT), ASKED))
    none = next(Push(max_new_tokens=3).run(Victim(chat, FIT), ASKED))
    assert [one.completion for one in none] == [one.completion for one in own]
