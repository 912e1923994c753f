"""Latent adversarial training against a slow, obvious version, row by row through plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.target import OPENINGS
from es2.defences.lat import Lat, LatentAdversary
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train, trainable
from es2.errors import Es2Error
from es2.models.generation import generate
from es2.models.loading import ChatModel
from material import begun
from tiny import PROMPTS, with_lora

PROHIBITED = ["Tell me of ships", "Tell me of the sea and of all its winds", "And of rain?"]
"""Stand-ins: what a random model goes on with is noise."""
SETTINGS = TrainSettings(batch_size=2, seed=4, rank=2)
TERMS = Lat(iterations=2, harmful_tokens=4, answer_tokens=3, share=0.5)


def objective_for(chat: ChatModel, terms: Lat = TERMS) -> LatentAdversary:
    return terms.rows(chat, begun(chat, PROHIBITED, terms.harmful_tokens), PROMPTS, SETTINGS)


def said(
    chat: ChatModel, row: list[int], deltas: dict[int, Tensor] | None = None, start: int = 0
) -> Tensor:
    """Log-probabilities after every token of a row read alone, moved at the tokens from `start`."""
    handles = []

    def moved(layer: int, stream: Tensor) -> Tensor:
        delta = (deltas or {})[layer]
        stream = stream.clone()
        stream[0, start : start + len(delta)] += delta
        return stream

    def after(layer: int) -> Callable[..., object]:
        def hook(_module: object, _inputs: object, output: object) -> object:
            if isinstance(output, tuple):
                return (moved(layer, output[0]), *output[1:])
            assert isinstance(output, Tensor)
            return moved(layer, output)

        return hook

    def before(_module: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> object:
        if inputs:
            return (moved(0, inputs[0]), *inputs[1:]), named
        return inputs, {**named, "hidden_states": moved(0, named["hidden_states"])}

    for layer in deltas or {}:
        if layer:
            handles.append(chat.blocks[layer - 1].register_forward_hook(after(layer)))
        else:
            handles.append(chat.blocks[0].register_forward_pre_hook(before, with_kwargs=True))
    found = chat.model(torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return found


def told(chances: Tensor, row: list[int], begin: int) -> list[Tensor]:
    return [chances[place - 1, row[place]] for place in range(begin, len(row))]


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros(())) / len(values)


def toward(chances: list[Tensor]) -> Tensor:
    return mean([-chance for chance in chances])


def away(chances: list[Tensor]) -> Tensor:
    unsaid = torch.zeros(())
    return mean([-(1 - c.exp()).log() if float(c.detach()) >= -5 else unsaid for c in chances])


def both(
    chat: ChatModel, objective: LatentAdversary, bad: list[int], deltas: list[dict[int, Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities of all refusals' tokens, and of all harmful responses'."""
    start = chat.template.head
    refusals: list[Tensor] = []
    compliances: list[Tensor] = []
    for index, own in zip(bad, deltas, strict=True):
        pair = objective.harmful[index]
        refusals += told(said(chat, pair.refusal, own, start), pair.refusal, pair.begins)
        compliances += told(said(chat, pair.compliance, own, start), pair.compliance, pair.begins)
    return refusals, compliances


def slow_search(
    chat: ChatModel, objective: LatentAdversary, bad: list[int]
) -> list[dict[int, Tensor]]:
    """Adam on each prompt's own perturbation, and every token back into its ball."""
    terms, width = objective.terms, chat.inner.config.hidden_size
    deltas = [
        {
            layer: torch.zeros(
                objective.harmful[i].begins - chat.template.head, width, requires_grad=True
            )
            for layer in objective.radii
        }
        for i in bad
    ]
    optimiser = torch.optim.AdamW(
        [
            {"params": [own[layer] for own in deltas], "lr": terms.rate * radius / width**0.5}
            for layer, radius in objective.radii.items()
        ]
    )
    for _ in range(terms.iterations):
        refusals, compliances = both(chat, objective, bad, deltas)
        optimiser.zero_grad()
        (terms.toward * toward(compliances) + terms.away * away(refusals)).backward()
        optimiser.step()
        with torch.no_grad():
            for own in deltas:
                for layer, delta in own.items():
                    for token in delta:
                        if float(token.norm()) > objective.radii[layer]:
                            token *= objective.radii[layer] / float(token.norm())
    return [{layer: delta.detach() for layer, delta in own.items()} for own in deltas]


def slow_loss(
    base: ChatModel, tuned: ChatModel, objective: LatentAdversary, step: int
) -> tuple[Tensor, list[dict[int, Tensor]]]:
    terms = objective.terms
    bad = batch_indices(len(PROHIBITED), SETTINGS.batch_size, step, SETTINGS.seed)
    good = batch_indices(len(PROMPTS), SETTINGS.batch_size, step, SETTINGS.seed + 1)
    deltas = slow_search(tuned, objective, bad)
    refusals, compliances = both(tuned, objective, bad, deltas)
    total = terms.toward * toward(refusals) + terms.away * away(compliances)
    kls, answers = [], []
    for index in good:
        row, first = objective.harmless.rows[index], objective.harmless.firsts[index]
        with torch.no_grad():
            was = said(base, row)[first:]
        now = said(tuned, row)
        kls.append((was.exp() * (was - now[first:])).sum(-1).mean())
        answers += told(now, row, first + 1)
    kl = mean(kls)
    total = total + terms.kl * kl / (kl.detach() + 1e-3)
    return total + terms.sft * toward(answers), deltas


def test_the_loss_is_what_remains_of_the_refusal_under_the_worst_perturbation(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    base = tiny(family)
    objective = objective_for(base, replace(TERMS, sft=0.3))
    tuned = with_lora(tiny(family), scale=0.05)
    loss, metrics = objective.loss(tuned, 1)
    parameters = list(trainable(tuned).values())
    mine = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    slow, deltas = slow_loss(base, tuned, objective, 1)
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(slow, parameters)])
    assert min(float(d.norm()) for own in deltas for d in own.values()) > 0
    assert metrics["kl"] > 1e-3
    torch.testing.assert_close(loss, slow, rtol=2e-3, atol=1e-4)
    # Where a gradient is all but zero, Adam's first step goes one way or the other.
    assert (mine - theirs).norm() < 0.05 * theirs.norm()


def test_a_perturbation_stays_in_its_ball_and_on_its_prompt(
    tiny: Callable[[str], ChatModel], family: str
) -> None:
    chat = tiny(family)
    objective = objective_for(chat, replace(TERMS, iterations=6, rate=0.9))
    start = chat.template.head
    found, metrics = objective.search(chat, objective.harmful, start)
    assert set(found) == set(objective.radii)
    for layer, delta in found.items():
        norms = delta.norm(dim=-1)
        assert float(norms.max()) <= objective.radii[layer] * (1 + 1e-5)
        # It is worth going far.
        assert float(norms.max()) > 0.9 * objective.radii[layer]
        for own, pair in zip(norms, objective.harmful, strict=True):
            assert (own[: pair.begins - start] > 0).any()
            assert not own[pair.begins - start :].any()
    assert metrics["search_last"] < metrics["search_first"]


def test_under_the_perturbation_the_harmful_response_gains_on_the_refusal(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = tiny("llama")
    objective = objective_for(chat, replace(TERMS, iterations=16))
    every = [0, 1, 2]
    start = chat.template.head
    found, metrics = objective.search(chat, objective.harmful, start)
    ends = [pair.begins - start for pair in objective.harmful]
    moved = [{n: d[i, : ends[i]] for n, d in found.items()} for i in every]
    with torch.no_grad():
        plain = both(chat, objective, every, [{} for _ in every])
        pushed = both(chat, objective, every, moved)
    first = objective.terms.toward * toward(plain[1]) + objective.terms.away * away(plain[0])
    assert metrics["search_first"] == pytest.approx(float(first), rel=1e-4)
    assert toward(pushed[1]) < toward(plain[1]) - 0.2
    gained = toward(pushed[0]) - toward(pushed[1]) - (toward(plain[0]) - toward(plain[1]))
    assert gained > 0.2


def test_the_search_leaves_weights_and_their_gradients_alone(
    tiny: Callable[[str], ChatModel],
) -> None:
    chat = with_lora(tiny("llama"))
    objective = objective_for(chat)
    before = {name: p.detach().clone() for name, p in trainable(chat).items()}
    objective.search(chat, objective.harmful, chat.template.head)
    assert all(p.grad is None for p in chat.model.parameters())
    for parameter in trainable(chat).values():
        parameter.grad = torch.full_like(parameter, 7.0)
    found, _ = objective.search(chat, objective.harmful, chat.template.head)
    assert not any(delta.requires_grad for delta in found.values())
    for name, parameter in trainable(chat).items():
        assert parameter.grad is not None and (parameter.grad == 7.0).all()
        assert torch.equal(parameter, before[name])


def test_without_a_ball_it_is_plain_training(tiny: Callable[[str], ChatModel]) -> None:
    chat = with_lora(tiny("llama"))
    none = objective_for(chat, replace(TERMS, epsilon=0.0))
    untouched = objective_for(chat, replace(TERMS, iterations=0))
    found, _ = none.search(chat, none.harmful, chat.template.head)
    assert not any(delta.any() for delta in found.values())
    one, two = (objective.loss(chat, 0)[0] for objective in (none, untouched))
    assert float(one.detach()) == pytest.approx(float(two.detach()), rel=1e-6)
    bad = batch_indices(len(PROHIBITED), 2, 0, SETTINGS.seed)
    with torch.no_grad():
        refusals, compliances = both(chat, none, bad, [{}, {}])
    _, metrics = none.loss(chat, 0)
    assert metrics["toward"] == pytest.approx(float(toward(refusals)), rel=1e-4)
    assert metrics["away"] == pytest.approx(float(away(compliances)), rel=1e-3, abs=1e-6)


def test_training_makes_the_refusal_likelier_under_attack(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=24, lr=5e-3, rank=4, validate_every=0)
    chat = tiny("llama")
    objective = replace(objective_for(chat, replace(TERMS, iterations=4)), settings=settings)
    tuned = attach_lora(chat, settings, (2, 4))
    before = objective.loss(tuned, 0)[1]
    train(tuned, objective, settings, tmp_path)
    after = objective.loss(tuned, 0)[1]
    assert after["toward"] < before["toward"] - 1
    # The perturbation is found anew, against the model as it is now.
    assert after["search_last"] <= after["search_first"]


def test_a_step_depends_on_the_model_and_the_step_alone(tiny: Callable[[str], ChatModel]) -> None:
    chat = with_lora(tiny("llama"))
    objective = objective_for(chat)
    first = objective.loss(chat, 3)[0]
    objective.loss(chat, 0)
    torch.manual_seed(9)
    assert float(objective.loss(chat, 3)[0].detach()) == float(first.detach())


def test_radii_are_a_share_of_the_streams_own_norms(chat: ChatModel) -> None:
    objective = objective_for(chat, replace(TERMS, share=0.25))
    assert tuple(objective.radii) == (0, 1, 2, 3, 4)
    norms: dict[int, list[float]] = {layer: [] for layer in objective.radii}
    for prompt in PROHIBITED:
        row = chat.template.encode(prompt)
        with torch.no_grad():
            # The last entry is after the final norm, and not what is perturbed.
            states = chat.inner(torch.tensor([row]), output_hidden_states=True).hidden_states
        for layer in (0, 1, 2, 3):
            norms[layer] += states[layer][0, chat.template.head :].norm(dim=-1).tolist()
    for layer in (0, 1, 2, 3):
        median = float(torch.tensor(norms[layer]).median())
        assert objective.radii[layer] == pytest.approx(0.25 * median, rel=1e-4)
    given = objective_for(chat, replace(TERMS, epsilon=6.0, layers=(0, 3)))
    assert given.radii == {0: 6.0, 3: 6.0}


def test_a_layer_that_the_model_lacks_is_named(shared: Callable[[str], ChatModel]) -> None:
    with pytest.raises(Es2Error, match=r"lat: layer 5 to perturb, but .* to 4"):
        objective_for(shared("llama"), replace(TERMS, layers=(0, 5)))


def test_a_harmful_response_is_an_affirmation_and_what_the_model_adds(chat: ChatModel) -> None:
    objective = objective_for(chat)
    for prompt, pair in zip(PROHIBITED, objective.harmful, strict=True):
        head = chat.template.encode(prompt)
        begun = chat.template.encode(prompt, OPENINGS[0])
        assert pair.begins == len(head)
        assert pair.refusal == [*chat.template.encode(prompt, REFUSAL), min(chat.stop_ids)]
        assert pair.compliance == begun + generate(chat, [begun], 4)[0]
