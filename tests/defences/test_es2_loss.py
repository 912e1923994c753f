"""ES2's loss against a slow, obvious version: separate forwards of two models, full logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from es2.attacks.target import AFFIRMATION
from es2.defences.ablated import Ablated
from es2.defences.es2 import Es2, Es2Paper
from es2.defences.margin import refusal_start
from es2.defences.objective import Separation
from es2.defences.reference import Reference, record
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, train
from es2.models.loading import ChatModel
from es2.separation.distance import batch_distance
from es2.separation.probe import prompt_states
from tiny import PROMPTS, with_lora

HARMFUL = [f"Tell me something about ships, number {i}, {'and more ' * i}" for i in range(5)]
HARMLESS = [*PROMPTS]
"""Two classes; no harm is needed to test the mathematics."""
LAYERS = (2, 4)
LINES = (2, 3)
"""Layers at which a line may be read; not layer 1, which sees nothing but the template in a window."""
SETTINGS = TrainSettings(batch_size=3, rank=2, lr=3e-3, seed=1)

FORMS = {
    "paper": Es2Paper(),
    "default": Es2(),
    "pairs": Es2(form="relative", cap=None),
    "centres": Es2(form="centre", cap=None),
    "pairs beyond a cap": Es2(form="relative", cap=0.5),
    "centres beyond a cap": Es2(form="centre", cap=0.1),
    "whole prompts and responses": Es2(kl_prompt=True, response_tokens=3),
    "refusal margins moved": Es2(keep_margin=3.0, lean=0.5, response_tokens=2),
    "refusal under attack": Es2(resist=2.0, reach=3.0, response_tokens=3),
    "refusal without its direction": Es2(ablated=2.0, response_tokens=3),
}


@dataclass(frozen=True)
class Case:
    """A base, a model in training that has moved away from it, and the objective."""

    base: ChatModel
    tuned: ChatModel
    objective: Separation


def objective_for(chat: ChatModel, terms: Es2, settings: TrainSettings = SETTINGS) -> Separation:
    harmful = record(chat, HARMFUL, terms.response_tokens, terms.kl_prompt)
    harmless = record(chat, HARMLESS, terms.response_tokens, terms.kl_prompt)
    states = [prompt_states(chat, texts) for texts in (HARMFUL, HARMLESS)]
    distances = {
        layer: batch_distance(
            *(group[:, layer - 1] for group in states), terms.form, settings.batch_size
        )
        for layer in LAYERS
    }
    start = refusal_start(harmful)
    ablated = Ablated(LINES) if terms.ablated else None
    return Separation(terms, settings, LAYERS, harmful, harmless, distances, start, ablated=ablated)


def make_case(chat: ChatModel, terms: Es2) -> Case:
    objective = objective_for(chat, terms)
    base = ChatModel(chat.name, copy.deepcopy(chat.model), chat.tokenizer)
    return Case(base, with_lora(chat, SETTINGS, scale=0.01, seed=3), objective)


Change = Callable[[int, Tensor], Tensor]


def one_row(
    chat: ChatModel, row: list[int], change: Change = lambda layer, stream: stream
) -> tuple[list[Tensor], Tensor]:
    """Every block's output and the full logits of one row, by the model's own forward."""
    outputs: list[Tensor] = []

    def first(_module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (change(0, args[0][0])[None], *args[1:])

    def hook(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        stream = output[0] if isinstance(output, tuple) else output
        outputs.append(change(len(outputs) + 1, stream[0]))
        return (outputs[-1][None], *output[1:]) if isinstance(output, tuple) else outputs[-1][None]

    hooks = [block.register_forward_hook(hook) for block in chat.blocks]
    hooks.append(chat.blocks[0].register_forward_pre_hook(first))
    found = chat.model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
    for hook in hooks:
        hook.remove()
    return outputs, found


def slow_kl(
    case: Case,
    reference: Reference,
    picked: list[int],
    changes: list[Change] | None = None,
) -> Tensor:
    """Row by row, position by position, token by token of the vocabulary."""
    terms, total = case.objective.terms, torch.zeros(())
    for place, index in enumerate(picked):
        row, first = reference.rows[index], reference.firsts[index]
        with torch.no_grad():
            base = one_row(case.base, row)[1].softmax(-1)
        changed = [changes[place]] if changes else []
        tuned = one_row(case.tuned, row, *changed)[1].softmax(-1)
        mean, weight = torch.zeros(()), 0.0
        for position in range(reference.starts[index], len(row)):
            own = terms.kl_first if position == first else 1.0
            p, q = base[position], tuned[position]
            mean = mean + own * (p * (p.log() - q.log())).sum()
            weight += own
        total = total + mean / weight
    return total / len(picked)


def slow_distance(harmful: list[Tensor], harmless: list[Tensor], terms: Es2) -> Tensor:
    if terms.form == "centre":
        return (sum(harmful) / len(harmful) - sum(harmless) / len(harmless)).norm()
    total = torch.zeros(())
    for one in harmful:
        for other in harmless:
            total = total + (one - other).norm()
    return total / (len(harmful) * len(harmless))


def slow_term(distance: Tensor, base: float, terms: Es2) -> Tensor:
    reached = distance / base
    if terms.cap is not None and float(reached.detach()) > terms.cap:
        reached = torch.tensor(terms.cap)
    return -reached * base if terms.form == "raw" else -reached


def slow_changes(
    case: Case, step: int, centres: dict[int, tuple[Tensor, Tensor]], firsts: list[int]
) -> list[Change]:
    """For each harmful row, what moves it along the line between the centres, layer by layer."""
    random = torch.Generator().manual_seed(SETTINGS.seed * 1_000_003 + step)
    shares = case.objective.terms.reach * torch.rand(len(firsts), generator=random)

    def changing(first: int, share: float) -> Change:
        def change(layer: int, stream: Tensor) -> Tensor:
            if layer not in centres:
                return stream
            harmful, harmless = (centre.detach() for centre in centres[layer])
            unit = (harmless - harmful) / (harmless - harmful).norm()
            wanted = share * (harmless - harmful).norm()
            moved = []
            for position, vector in enumerate(stream):
                along = (vector - harmful) @ unit
                if position >= first and along.item() < wanted.item():
                    vector = vector + (wanted - along) * unit
                moved.append(vector)
            return torch.stack(moved)

        return change

    return [changing(f, float(s)) for f, s in zip(firsts, shares, strict=True)]


def slow_removals(case: Case, bad: list[int]) -> Change:
    """What takes one layer's line out of every layer and of the embeddings.

    There are fewer prompts of a class than a line is read from, so it is read from all of them; and no
    more layers than are tried, so each is: the one that counts is where an affirmation is likeliest.
    """
    head = case.tuned.template.head
    target = case.tuned.template.encode_response(AFFIRMATION)

    def without(drawn: int) -> Change:
        centres = []
        for of in (case.objective.harmful, case.objective.harmless):
            prompts = [row[: first + 1] for row, first in zip(of.rows, of.firsts, strict=True)]
            ends = [one_row(case.tuned, prompt)[0][drawn - 1][-1].detach() for prompt in prompts]
            centres.append(sum(ends) / len(ends))
        harmful, harmless = centres
        unit = (harmful - harmless) / (harmful - harmless).norm()

        def change(layer: int, stream: Tensor) -> Tensor:
            kept = list(stream[:head])
            return torch.stack(kept + [vector - (vector @ unit) * unit for vector in stream[head:]])

        return change

    @torch.no_grad()
    def affirmed(change: Change) -> float:
        total = 0.0
        for index in bad:
            prompt = case.objective.harmful.rows[index][: case.objective.harmful.firsts[index] + 1]
            said = one_row(case.tuned, prompt + target, change)[1].log_softmax(-1)
            total -= sum(float(said[len(prompt) - 1 + k][t]) for k, t in enumerate(target))
        return total

    return min(map(without, LINES), key=affirmed)


def slow_margin_term(case: Case, good: list[int]) -> Tensor:
    """Mean squared difference of each harmless prompt's change of margin from what is asked."""
    objective, terms = case.objective, case.objective.terms
    harmful = zip(objective.harmful.rows, objective.harmful.firsts, strict=True)
    begun = [row[first + 1] for row, first in harmful]
    start = max(begun, key=begun.count)

    def margin(chat: ChatModel, index: int) -> Tensor:
        row, first = objective.harmless.rows[index], objective.harmless.firsts[index]
        said = one_row(chat, row)[1][first].log_softmax(-1)
        return said[start] - torch.cat([said[:start], said[start + 1 :]]).max()

    total = torch.zeros(())
    for index in good:
        with torch.no_grad():
            before = margin(case.base, index)
        total = total + (margin(case.tuned, index) - before - terms.lean) ** 2
    return terms.keep_margin * total / len(good)


def slow_loss(case: Case, step: int) -> Tensor:
    """Section 1 of the method, with the remedies, as one would write it down first."""
    objective, terms = case.objective, case.objective.terms
    bad = batch_indices(len(objective.harmful), SETTINGS.batch_size, step, SETTINGS.seed)
    good = batch_indices(len(objective.harmless), SETTINGS.batch_size, step, SETTINGS.seed + 1)
    states = {
        "bad": [one_row(case.tuned, objective.harmful.rows[i])[0] for i in bad],
        "good": [one_row(case.tuned, objective.harmless.rows[i])[0] for i in good],
    }
    firsts = {
        "bad": [objective.harmful.firsts[i] for i in bad],
        "good": [objective.harmless.firsts[i] for i in good],
    }

    def at(name: str, layer: int) -> list[Tensor]:
        rows = zip(states[name], firsts[name], strict=True)
        return [outputs[layer - 1][first] for outputs, first in rows]

    total = torch.zeros(())
    for layer in LAYERS:
        base = objective.base_distance[layer]
        distance = slow_distance(at("bad", layer), at("good", layer), terms)
        total = total + slow_term(distance, base, terms)
    if terms.keep_margin:
        total = total + slow_margin_term(case, good)
    if terms.resist:
        centres = {
            layer: (sum(at("bad", layer)) / len(bad), sum(at("good", layer)) / len(good))
            for layer in range(1, case.tuned.depth + 1)
        }
        between = range(min(LAYERS), max(LAYERS) + 1)
        moving = {layer: centres[layer] for layer in between}
        changes = slow_changes(case, step, moving, firsts["bad"])
        total = total + terms.resist * slow_kl(case, objective.harmful, bad, changes)
        if terms.ablated and step % 2 == 0:
            removed = [slow_removals(case, bad)] * len(bad)
            total = total + terms.ablated * slow_kl(case, objective.harmful, bad, removed)
    total = total + terms.kl_weight * slow_kl(case, objective.harmless, good)
    return total + terms.keep_refusal * slow_kl(case, objective.harmful, bad)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_and_its_gradient_are_the_formulas(
    tiny: Callable[[str], ChatModel], form: str
) -> None:
    for step, family in ((0, "llama"), (2, "gemma3")):
        case = make_case(tiny(family), FORMS[form])
        parameters = [p for p in case.tuned.model.parameters() if p.requires_grad]
        loss, _ = case.objective.loss(case.tuned, step)
        slow = slow_loss(case, step)
        torch.testing.assert_close(loss, slow, rtol=1e-4, atol=1e-4)
        mine = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        theirs = torch.cat([g.flatten() for g in torch.autograd.grad(slow, parameters)])
        assert theirs.norm() > 0
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("form", ["paper", "default"])
def test_the_loss_is_the_formulas_for_every_family(
    tiny: Callable[[str], ChatModel], family: str, form: str
) -> None:
    case = make_case(tiny(family), FORMS[form])
    with torch.no_grad():
        loss, _ = case.objective.loss(case.tuned, 2)
        torch.testing.assert_close(loss, slow_loss(case, 2), rtol=1e-4, atol=1e-4)


def test_the_kl_from_cached_states_is_that_of_two_models(own_chat: ChatModel) -> None:
    """One model is the base, deep-copied; the other has trained a step away from it."""
    base = ChatModel(own_chat.name, copy.deepcopy(own_chat.model), own_chat.tokenizer)
    objective = objective_for(own_chat, FORMS["default"])
    tuned = attach_lora(own_chat, SETTINGS, LAYERS)
    optimiser = torch.optim.AdamW([p for p in tuned.model.parameters() if p.requires_grad], lr=1e-2)
    loss, before = objective.loss(tuned, 0)
    assert before["kl"] == pytest.approx(0.0, abs=1e-5)
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        _, metrics = objective.loss(tuned, 0)
        good = batch_indices(len(HARMLESS), SETTINGS.batch_size, 0, SETTINGS.seed + 1)
        bad = batch_indices(len(HARMFUL), SETTINGS.batch_size, 0, SETTINGS.seed)
        case = Case(base, tuned, objective)
        harmless = float(slow_kl(case, objective.harmless, good))
        harmful = float(slow_kl(case, objective.harmful, bad))
    assert harmless > 1e-4
    assert metrics["kl"] == pytest.approx(harmless, rel=1e-3, abs=1e-5)
    assert metrics["kl_harmful"] == pytest.approx(harmful, rel=1e-3, abs=1e-5)


def test_the_papers_form_has_no_remedy() -> None:
    paper = Es2Paper(kl_weight=2.0, kl_threshold=0.3)
    assert (paper.form, paper.cap) == ("raw", None)
    assert (paper.keep_refusal, paper.keep_margin, paper.resist) == (0, 0, 0)
    assert (paper.kl_prompt, paper.kl_first, paper.response_tokens) == (True, 1, 0)
    assert (paper.kl_weight, paper.kl_threshold) == (2.0, 0.3)


def test_metrics_say_how_far_each_layer_is_from_the_base(
    tiny: Callable[[str], ChatModel],
) -> None:
    case = make_case(tiny("llama"), Es2())
    _, metrics = case.objective.loss(case.tuned, 0)
    for layer in LAYERS:
        assert metrics[f"distance_ratio_{layer}"] == pytest.approx(
            metrics[f"distance_{layer}"] / case.objective.base_distance[layer]
        )


@pytest.mark.parametrize(
    ("kls", "stops"),
    [
        ([0.01] * 10, False),
        ([0.2], False),
        ([0.01, 0.01, 0.01, 0.1], False),
        ([0.01, 0.06, 0.06, 0.06, 0.06], True),
        ([0.9, 0.04, 0.04, 0.04, 0.04], False),
    ],
    ids=["low", "too few", "one outlier", "passed", "long past"],
)
def test_training_stops_when_the_mean_kl_of_four_steps_passes_the_threshold(
    kls: list[float], stops: bool
) -> None:
    nothing = Reference([], [], [], [])
    objective = Separation(Es2(kl_threshold=0.05), SETTINGS, LAYERS, nothing, nothing, {})
    why = objective.stop([{"kl": kl} for kl in kls])
    assert bool(why) == stops
    assert why is None or "0.05" in why


def test_training_pushes_the_classes_apart_and_holds_the_kl(
    tiny: Callable[[str], ChatModel], tmp_path: Path
) -> None:
    chat = tiny("llama")
    settings = TrainSettings(steps=25, batch_size=5, lr=2e-3, rank=4, seed=0, validate_every=0)
    terms = Es2(cap=4.0, kl_weight=1.0, kl_threshold=10.0, response_tokens=2)
    objective = objective_for(chat, terms, settings)
    progress = train(attach_lora(chat, settings, LAYERS), objective, settings, tmp_path)
    last = progress.history[-1]
    assert all(last[f"distance_ratio_{layer}"] > 1.3 for layer in LAYERS)
    assert last["loss"] < progress.history[0]["loss"]
