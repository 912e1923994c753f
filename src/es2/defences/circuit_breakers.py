"""Circuit breakers by representation rerouting (RR): harmful states are turned away from the base's.

Source: Zou et al., "Improving Alignment and Robustness with Circuit Breakers" (arXiv 2406.04313), and
the published code, GraySwanAI/circuit-breakers. With t the step, from 1, of T, the loss is

    alpha (1 - t / 2T) mean ReLU(cos(h, h_base)) + alpha t / 2T mean ||h - h_base||

the first over two layers and all positions of harmful prompts with harmful responses, the second over
all trained layers and all positions of texts to be kept. Different here from what was published:

- Harmful responses are the model's own, begun with an affirmation, not another model's.
- Positions count from the user's text on. What the template writes before it has the same states in
  every text, so that nothing could turn them in one and keep them in another. That is left where a
  harmful prompt's refusal is kept too, and of the template's end behind an empty prompt, as there.
- Only real tokens count in both means. The published second mean also counts padding up to 1024
  tokens, where nothing moves, which weighs it the less the shorter the texts are.
- Texts to be kept are the model's own answers to harmless and borderline prompts and its refusals; the
  published are UltraChat, XSTest (which is a benchmark here) and, for Llama 3, refusals.
- The published LoRA is on all linear modules of the blocks up to the one above the last target layer,
  with dropout 0.05. Here it is on those of all blocks, but those above the last target layer get no
  gradient and stay zero; there is no dropout.

Where training starts the cosine is at its top and has no slope. The first step is one of rounding
errors, there as here; AdamW makes them large enough to go on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.target import OPENINGS
from es2.defences.base import DEFENCES, Material, Range
from es2.defences.inner_reference import (
    Texts,
    before_and_now,
    drift,
    expected_bending,
    layers_at,
    places,
    texts_to_train_on,
)
from es2.defences.trainer import TrainSettings, batch_indices, frozen_copy
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work


@DEFENCES.register
@dataclass(frozen=True)
class CircuitBreakers:
    """Turns the inner states of harmful texts away from the base's, and holds those of others.

    Attributes:
        layers: where states are turned; None for the published shares of the depth.
        alpha: weight of the loss; of no effect on its own but against the gradient limit. Published:
            10 for Llama 3, 5 for Mistral.
        hold: weight of holding against turning. Published: 1; a distance in the model's own units,
            so that what 1 means depends on the model.
        openings: what the model's harmful responses may begin with, in the order they are tried.
        response_tokens: how many tokens of its own it adds to that, and writes in other responses.
        refusals: refusals to be kept, for each answer to be kept.
        bare: share of texts whose prompt is left empty, so that responses alone are turned too.
    """

    name: ClassVar[str] = "circuit_breakers"
    source: ClassVar[str] = "Zou et al., arXiv 2406.04313"
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=150,
        batch_size=16,
        lr=1e-4,
        warmup=0,
        min_lr_rate=1.0,
        rank=16,
        alpha=16,
        validate_every=0,
    )
    keeps: ClassVar[str] = "last"
    layers: tuple[int, ...] | None = None
    alpha: float = 10.0
    hold: float = 1.0
    openings: tuple[str, ...] = OPENINGS
    response_tokens: int = 64
    refusals: float = 0.2
    bare: float = 0.5

    least: ClassVar[Mapping[str, float]] = {
        "alpha": 0,
        "hold": 0,
        "response_tokens": 1,
        "refusals": 0,
        "bare": 0,
    }
    searched: ClassVar[Mapping[str, Range]] = {"hold": Range(0.01, 1.0, log=True)}
    shares: ClassVar[tuple[float, ...]] = (10 / 32, 20 / 32)

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """As `expected_bending` has it."""
        return expected_bending(
            settings, lengths, harmful, harmless, rows,
            self.response_tokens, self.openings, self.refusals,
        )  # fmt: skip

    def prepare(self, material: Material) -> Rerouting:
        """Has the model write the texts, and picks the layers."""
        chat, settings = material.chat, material.settings
        layers = layers_at(chat.depth, self.layers, self.shares)
        texts = texts_to_train_on(material, self.response_tokens, self.openings, self.refusals)
        harmful, kept = (emptied(chat, group, self.bare) for group in texts)
        return Rerouting(self, settings, layers, harmful, kept, frozen_copy(chat, settings))


def emptied(chat: ChatModel, texts: Texts, share: float) -> Texts:
    """The texts, evenly spaced ones of them with an empty prompt in place of their own."""
    head = chat.template.encode("")
    rows, begins = [], []
    for index, response in enumerate(texts.responses()):
        bare = int((index + 1) * share) > int(index * share)
        rows.append([*head, *response] if bare else texts.rows[index])
        begins.append(len(head) if bare else texts.begins[index])
    return Texts(rows, begins)


@dataclass
class Rerouting:
    """Representation rerouting's objective for the trainer.

    Attributes:
        terms: the loss.
        settings: of the training loop; a step has `batch_size` texts of each kind.
        layers: where states are turned.
        harmful: texts whose states are turned away.
        kept: texts whose states are held.
        base: see `frozen_copy`.
    """

    terms: CircuitBreakers
    settings: TrainSettings
    layers: Sequence[int]
    harmful: Texts
    kept: Texts
    base: ChatModel | None = None

    def weights(self, step: int) -> tuple[float, float]:
        """Of turning and of holding, in a step counted from 0."""
        done = (step + 1) / (2 * self.settings.steps)
        return self.terms.alpha * (1 - done), self.terms.alpha * self.terms.hold * done

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """One pass of each model over both kinds of text, up to the last layer where states turn."""
        size, seed = self.settings.batch_size, self.settings.seed
        bad = self.harmful.subset(batch_indices(len(self.harmful), size, step, seed))
        good = self.kept.subset(batch_indices(len(self.kept), size, step, seed + 1))
        held = range(1, max(self.layers) + 1)
        before, now = before_and_now(chat, self.base, bad.rows + good.rows, held, stop=True)
        head = chat.template.head
        turned = places(bad.rows, [head] * len(bad))
        cosines = [
            torch.cosine_similarity(
                turned.of(now, now.states[n]), turned.of(before, before.states[n]), dim=-1
            )
            for n in self.layers
        ]
        reroute = torch.stack(cosines).relu().mean()
        retain = drift(before, now, held, places(good.rows, [head] * len(good), len(bad)))
        turn, hold = self.weights(step)
        metrics = {"reroute": float(reroute.detach()), "retain": float(retain.detach())}
        return turn * reroute + hold * retain, metrics
