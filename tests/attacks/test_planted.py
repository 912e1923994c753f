"""On a model whose refusal is a known linear function, attacks find the function and undo it."""

from __future__ import annotations

import pytest
import torch

from es2.attacks import Attack, Direct, RefusalAblation, RepE, Scav, Victim
from es2.attacks.refusal_ablation import mean_difference
from es2.attacks.repe import Reading, reading_vectors
from planted import ASKED, FIT, HARMLESS, REFUSAL, planted

LAYERS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def victim() -> Victim:
    return Victim(planted()[0], FIT)


@pytest.fixture(scope="module")
def direction() -> torch.Tensor:
    return planted()[1]


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.float(), two.float(), dim=0))


def refusals(attack: Attack, victim: Victim) -> list[list[bool]]:
    found = attack.run(victim, ASKED)
    return [[one.completion.startswith(REFUSAL) for one in setting] for setting in found]


def test_the_planted_model_refuses_what_it_should(victim: Victim) -> None:
    assert refusals(Direct(max_new_tokens=3), victim) == [[True, True, True]]
    harmless = [ASKED[0].__class__(**{**vars(ASKED[0]), "text": text}) for text in HARMLESS]
    (answers,) = Direct(max_new_tokens=3).run(victim, harmless)
    assert not any(answer.completion.startswith(REFUSAL) for answer in answers)


@pytest.mark.parametrize("reading", ["pca", "mean", "probe"])
def test_repe_reads_the_direction_with_its_sign(
    victim: Victim, direction: torch.Tensor, reading: Reading
) -> None:
    vectors = reading_vectors(victim.states, reading)
    assert all(cosine(vectors[layer].direction, direction) > 0.99 for layer in LAYERS)


def test_scav_and_ablation_find_the_direction(victim: Victim, direction: torch.Tensor) -> None:
    probes = Scav().probes(victim.states)
    assert sorted(probes) == list(LAYERS)
    assert all(cosine(probe.w, direction) > 0.99 for probe in probes.values())
    assert all(cosine(mean_difference(victim.states, layer), direction) > 0.99 for layer in LAYERS)


@pytest.mark.parametrize("reading", ["pca", "mean", "probe"])
def test_repe_flips_it(victim: Victim, reading: Reading) -> None:
    found = refusals(RepE(reading, strengths=(0.001, 2.0), max_new_tokens=3), victim)
    assert found == [[True, True, True], [False, False, False]]


def test_scav_flips_it(victim: Victim) -> None:
    assert refusals(Scav(p0=(1e-3,), max_new_tokens=3), victim) == [[False, False, False]]


def test_ablation_flips_it_in_activations_and_in_weights(victim: Victim) -> None:
    found = refusals(RefusalAblation(max_new_tokens=3), victim)
    assert found == [[False, False, False], [False, False, False]]
