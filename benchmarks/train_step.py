"""One ES2 training step: es2's way against the plain way, on the embedded model.

    python benchmarks/train_step.py --repeats 5

The plain way is what one writes first: separate full forwards of padded batches for harmful prompts,
harmless prompts and the base model (the adapter switched off), logits at every position, no prefix
shared. es2's way shares the template's prefix, runs both classes in one forward, takes logits where
the loss needs them, and has recorded the base's hidden states before training.

Both compute the same loss of the same batch from the same weights. A step is forward, backward and
optimiser. Steps of the two ways alternate; the medians are printed. es2's recording of the base is
timed apart: the last column charges all of it to one step, as if no prompt were ever seen twice.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from machine import clock
from torch import Tensor

from es2.data.sources import load_prompts
from es2.defences.es2 import Es2, Es2Paper
from es2.defences.margin import refusal_margin, refusal_start
from es2.defences.objective import Separation
from es2.defences.reference import Reference, record
from es2.defences.trainer import TrainSettings, attach_lora, batch_indices, trainable
from es2.models.activations import Edit, edit
from es2.models.forward import forward, shared_prefix
from es2.models.loading import ChatModel, load
from es2.separation.distance import batch_distance, class_distance, distance_term
from es2.separation.probe import prompt_states

FORMS = {"paper": Es2Paper(), "default": Es2()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-aligned")
    parser.add_argument("--layers", type=int, nargs=2, help="default: the middle one and the last")
    parser.add_argument("--batch", type=int, default=8, help="prompts of each class")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    texts = [
        [prompt.text for prompt in load_prompts(f"{name}:train", limit=4 * arguments.batch)]
        for name in ("harmful", "harmless")
    ]
    print(f"{arguments.model}, {arguments.batch}+{arguments.batch} prompts, medians in seconds")
    print(
        f"{'form':8} {'es2':>7} {'plain':>7} {'es2 prompts/s':>14} {'plain':>7} {'ratio':>6}",
        end="",
    )
    print(f" {'loss difference':>16} {'recording':>10} {'ratio with it':>14}")
    for name, terms in FORMS.items():
        base = load(arguments.model)
        layers = tuple(arguments.layers or (base.depth // 2, base.depth))
        settings = TrainSettings(batch_size=arguments.batch, seed=arguments.seed)
        objective = record_base(base, terms, settings, layers, texts)
        chat = moved(attach_lora(base, settings, layers), arguments.seed)
        # A rate of zero costs the same and leaves every step at the same weights.
        optimiser = torch.optim.AdamW(trainable(chat).values(), lr=0.0, weight_decay=0.0)

        def step(
            loss: Callable[[ChatModel, Separation], Tensor],
            chat: ChatModel = chat,
            objective: Separation = objective,
            optimiser: torch.optim.Optimizer = optimiser,
        ) -> tuple[float, float]:
            started = clock(chat.device)
            value = loss(chat, objective)
            value.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            return clock(chat.device) - started, float(value.detach())

        ways = {"es2": es2_loss, "plain": plain_loss}
        values = {way: step(loss)[1] for way, loss in ways.items()}  # and a warm-up
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        recording: list[float] = []
        for _ in range(arguments.repeats):
            for way, loss in ways.items():
                seconds[way].append(step(loss)[0])
            recording.append(record_again(chat, objective))
        median = {way: statistics.median(times) for way, times in seconds.items()}
        whole = median["es2"] + statistics.median(recording)
        difference = abs(values["es2"] - values["plain"])
        rate = {way: 2 * arguments.batch / median[way] for way in ways}
        print(
            f"{name:8} {median['es2']:7.2f} {median['plain']:7.2f} {rate['es2']:14.2f} "
            f"{rate['plain']:7.2f} {median['plain'] / median['es2']:6.2f} {difference:16.1e} "
            f"{statistics.median(recording):10.2f} {median['plain'] / whole:14.2f}"
        )
        limit = 1e-4 * max(1.0, abs(values["plain"]))
        if difference > limit:
            raise SystemExit(f"{name}: the two losses differ by {difference}, more than {limit}")
        print(f"         {tokens(objective)}; loss {values['plain']:.4f}")


def record_base(
    chat: ChatModel,
    terms: Es2,
    settings: TrainSettings,
    layers: tuple[int, ...],
    texts: Sequence[Sequence[str]],
) -> Separation:
    """The objective, with what the base does on the prompts."""
    harmful, harmless = (
        record(chat, group, terms.response_tokens, terms.kl_prompt) for group in texts
    )
    states, size = [prompt_states(chat, group) for group in texts], settings.batch_size
    distances = {
        layer: batch_distance(*(group[:, layer - 1] for group in states), terms.form, size)
        for layer in layers
    }
    start = refusal_start(harmful)
    return Separation(terms, settings, layers, harmful, harmless, distances, start)


def moved(chat: ChatModel, seed: int) -> ChatModel:
    """The model somewhere on its way, where no term of the loss is zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable(chat).items():
            if "lora_B" in name:
                parameter.normal_(0, 1e-3)
    return chat


def picked(objective: Separation) -> list[tuple[Reference, list[int]]]:
    """Both classes' records, and the members of the batch of step 0."""
    size, seed = objective.settings.batch_size, objective.settings.seed
    return [
        (reference, batch_indices(len(reference), size, 0, seed + offset))
        for offset, reference in enumerate((objective.harmful, objective.harmless))
    ]


def off(chat: ChatModel) -> AbstractContextManager[Any]:
    """Within the context, the model is its base."""
    model: Any = chat.model
    return model.disable_adapter()


def es2_loss(chat: ChatModel, objective: Separation) -> Tensor:
    return objective.loss(chat, 0)[0]


@torch.no_grad()
def record_again(chat: ChatModel, objective: Separation) -> float:
    """Seconds to record the base on one batch; its responses are needed by either way."""
    started = clock(chat.device)
    with off(chat):
        for reference, batch in picked(objective):
            if reference is objective.harmless or objective.terms.keep_refusal:
                rows = [reference.rows[i] for i in batch]
                forward(chat, rows, keep=min(reference.starts[i] for i in batch))
    return clock(chat.device) - started


def plain_forward(
    chat: ChatModel, rows: Sequence[Sequence[int]], layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Blocks' outputs and logits at every position of rows padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=chat.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    states: dict[int, Tensor] = {}
    hooks = [
        chat.blocks[layer - 1].register_forward_hook(
            lambda _m, _i, out, layer=layer: states.update(
                {layer: out[0] if isinstance(out, tuple) else out}
            )
        )
        for layer in layers
    ]
    model: Any = chat.model
    out = model(input_ids=ids, attention_mask=mask.to(chat.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return states, out.logits.float()


def plain_kl(before: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    """The weighed KL from the base's log-probabilities, over all positions."""
    divergence = (before.exp() * (before - logits.log_softmax(-1))).sum(-1)
    return (divergence * weights).sum()


def plain_moved(
    chat: ChatModel,
    objective: Separation,
    tuned: Sequence[dict[int, Tensor]],
    layers: Sequence[int],
) -> Tensor:
    """Logits of the harmful rows in one more pass, moved towards the harmless centre."""
    reference, batch = picked(objective)[0]
    random = torch.Generator().manual_seed(objective.settings.seed * 1_000_003)
    share = objective.terms.reach * torch.rand(len(batch), 1, generator=random).to(chat.device)
    last = torch.tensor([reference.firsts[i] for i in batch], device=chat.device)

    def change(layer: int) -> Edit:
        harmful, harmless = (group[layer].detach().mean(0) for group in tuned)
        way = harmless - harmful

        def push(stream: Tensor) -> Tensor:
            along = (stream - harmful) @ way / way.dot(way)
            after = torch.arange(stream.shape[1], device=chat.device) >= last[:, None]
            return stream + ((share - along).clamp(min=0.0) * after)[..., None] * way

        return push

    with edit(chat.blocks, {layer: change(layer) for layer in layers}):
        return plain_forward(chat, [reference.rows[i] for i in batch], ())[1]


def plain_loss(chat: ChatModel, objective: Separation) -> Tensor:
    """The same loss, written down first: whole batches, all positions, all logits."""
    terms = objective.terms
    tuned = []
    divergences = []
    layers = range(min(objective.layers), max(objective.layers) + 1)
    for reference, batch in picked(objective):
        rows = [reference.rows[i] for i in batch]
        states, logits = plain_forward(chat, rows, layers)
        last = torch.tensor([reference.firsts[i] for i in batch], device=chat.device)
        each = torch.arange(len(batch), device=chat.device)
        tuned.append({layer: state[each, last] for layer, state in states.items()})
        if reference is objective.harmful and not (terms.keep_refusal or terms.resist):
            continue
        with torch.no_grad(), off(chat):
            _, base = plain_forward(chat, rows, ())
        before = base.log_softmax(-1)
        weights = torch.zeros(logits.shape[:2], device=chat.device)
        for place, i in enumerate(batch):
            weights[place, reference.starts[i] : len(reference.rows[i])] = 1.0
            weights[place, reference.firsts[i]] = terms.kl_first
        weights = weights / weights.sum(1, keepdim=True) / len(batch)
        if reference is objective.harmless and terms.keep_margin and objective.refusal is not None:
            now, then = (
                refusal_margin(scores[each, last], objective.refusal) for scores in (logits, base)
            )
            margins = (now - then - terms.lean).square().mean()
            divergences.append(terms.keep_margin * margins)
        weight = terms.kl_weight if reference is objective.harmless else terms.keep_refusal
        divergences.append(weight * plain_kl(before, logits, weights))
        if reference is objective.harmful:
            refusal = before, weights
    if terms.resist:
        moved = plain_moved(chat, objective, tuned, layers)
        divergences.append(terms.resist * plain_kl(refusal[0], moved, refusal[1]))
    total = torch.stack(divergences).sum()
    for layer in objective.layers:
        distance = class_distance(*(states[layer] for states in tuned), terms.form)
        total = total + distance_term(
            distance, objective.base_distance[layer], terms.form, terms.cap
        )
    return total


def tokens(objective: Separation) -> str:
    """How many tokens the two ways run: what the ratio rests on."""
    rows = [[reference.rows[i] for i in batch] for reference, batch in picked(objective)]
    both = [row for group in rows for row in group]
    starts = [min(reference.starts[i] for i in batch) for reference, batch in picked(objective)]
    shared = min(shared_prefix(both), *starts)
    again = rows[0] if objective.terms.resist else []  # the harmful rows, moved
    mine = shared + len(both + again) * (max(map(len, both)) - shared)
    plain = sum(len(group) * max(map(len, group)) for group in (*rows, again) if group)
    refusals = objective.terms.keep_refusal or objective.terms.resist
    twice = sum(len(group) * max(map(len, group)) for group in (rows if refusals else rows[1:]))
    return (
        f"tokens forward and backward {mine} against {plain}, and forward alone 0 against {twice}; "
        f"{shared} of a row's {sum(map(len, both)) / len(both):.0f} are shared"
    )


if __name__ == "__main__":
    main()
