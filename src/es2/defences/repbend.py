"""Representation bending (RepBend): states of harmful answers go far from the base's, others stay.

Source: Yousefpour et al., "Representation Bending for Large Language Model Safety" (arXiv 2504.01550),
and the published code, AIM-Intelligence/RepBend. The loss is

    0.5 mean ||h - h_base||     safe responses, all layers
  - 0.5 mean ||h - h_base||     unsafe responses, layers 20 to 30 of 32
  + 0.1 (1 - mean cos(h, h'))   last prompt tokens of different unsafe texts, layers 20 to 30 of 32
  + 0.3 KL(base || model)       at temperature 2, times its square; summed over a text's tokens

Different here from what was published:

- Unsafe responses are the model's own, begun with an affirmation; the published are WildGuardMix's and
  WildJailbreak's. Safe texts are its own answers and refusals; there, those of the same sets.
- The KL is over the same safe texts, from the user's text on; there, over UltraChat's. A step reads
  `batch_size` texts of each kind; there, twice as many, and as many of UltraChat's.
- The cosine is over all pairs of a step; there, over those of a quarter of it, four and four texts.
- The top layer's states are taken before the final norm, not after; the embeddings, which do not move,
  do not count as a layer.
- The published LoRA is on all linear modules of the blocks up to the one above the last target layer,
  with dropout 0.05. Here it is on those of all blocks, without dropout.

The published code has a fifth term, of weight 0, which is left out. How the weights were chosen, and
for which other sizes of model, is not known to us.
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
    Places,
    Texts,
    before_and_now,
    drift,
    expected_bending,
    layers_at,
    places,
    texts_to_train_on,
)
from es2.defences.reference import kl_divergence
from es2.defences.trainer import TrainSettings, batch_indices, frozen_copy
from es2.models.blocks import logits
from es2.models.forward import Forward
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work


@DEFENCES.register
@dataclass(frozen=True)
class RepBend:
    """Drives the inner states of harmful answers away from the base's, and holds those of others.

    Attributes:
        layers: where unsafe states are driven away; None for the published shares of the depth.
        safe: weight of the safe states' distance from the base's.
        unsafe: weight of the unsafe states', which is to grow.
        gather: weight that makes unsafe states alike.
        kl_weight: weight of the KL on safe texts.
        temperature: of the KL's distributions.
        openings: what the model's unsafe responses may begin with, in the order they are tried.
        response_tokens: how many tokens of its own it adds to that, and writes in other responses.
        refusals: refusals among the safe texts, for each answer. Published: one and more.
    """

    name: ClassVar[str] = "repbend"
    source: ClassVar[str] = "Yousefpour et al., arXiv 2504.01550"
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=450,
        batch_size=16,
        lr=1e-5,
        warmup=0,
        min_lr_rate=1.0,
        rank=16,
        alpha=16,
        validate_every=0,
    )
    keeps: ClassVar[str] = "last"
    layers: tuple[int, ...] | None = None
    safe: float = 0.5
    unsafe: float = 0.5
    gather: float = 0.1
    kl_weight: float = 0.3
    temperature: float = 2.0
    openings: tuple[str, ...] = OPENINGS
    response_tokens: int = 64
    refusals: float = 1.0

    least: ClassVar[Mapping[str, float]] = {
        "safe": 0,
        "unsafe": 0,
        "gather": 0,
        "kl_weight": 0,
        "temperature": 1e-3,
        "response_tokens": 1,
        "refusals": 0,
    }
    searched: ClassVar[Mapping[str, Range]] = {
        "safe": Range(0.1, 2.0, log=True),
        "unsafe": Range(0.1, 2.0, log=True),
        "kl_weight": Range(0.1, 3.0, log=True),
    }
    shares: ClassVar[tuple[float, ...]] = tuple(layer / 32 for layer in range(20, 31))

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """As `expected_bending` has it."""
        return expected_bending(
            settings, lengths, harmful, harmless, rows,
            self.response_tokens, self.openings, self.refusals, scored=0.5,
        )  # fmt: skip

    def prepare(self, material: Material) -> Bending:
        """Has the model write the texts, and picks the layers."""
        chat, settings = material.chat, material.settings
        layers = layers_at(chat.depth, self.layers, self.shares)
        unsafe, safe = texts_to_train_on(
            material, self.response_tokens, self.openings, self.refusals
        )
        return Bending(self, settings, layers, unsafe, safe, frozen_copy(chat, settings))


@dataclass
class Bending:
    """Representation bending's objective for the trainer.

    Attributes:
        terms: the loss.
        settings: of the training loop; a step has `batch_size` texts of each kind.
        layers: where unsafe states are driven away.
        unsafe: texts whose states are driven away.
        safe: texts whose states are held.
        base: see `frozen_copy`.
    """

    terms: RepBend
    settings: TrainSettings
    layers: Sequence[int]
    unsafe: Texts
    safe: Texts
    base: ChatModel | None = None

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """One pass of each model over both kinds of text."""
        size, seed, terms = self.settings.batch_size, self.settings.seed, self.terms
        bad = self.unsafe.subset(batch_indices(len(self.unsafe), size, step, seed))
        good = self.safe.subset(batch_indices(len(self.safe), size, step, seed + 1))
        every, split = range(1, chat.depth + 1), len(bad)
        before, now = before_and_now(chat, self.base, bad.rows + good.rows, every)
        unsafe = drift(before, now, self.layers, places(bad.rows, bad.begins))
        safe = drift(before, now, every, places(good.rows, good.begins, split))
        apart = self._apart(now, bad)
        kl = self._kl(chat, before, now, good, split)
        metrics = {
            "drift_unsafe": float(unsafe.detach()),
            "drift_safe": float(safe.detach()),
            "apart": float(apart.detach()),
            "divergence": float(kl.detach()),
        }
        total = terms.safe * safe - terms.unsafe * unsafe
        return total + terms.gather * apart + terms.kl_weight * kl, metrics

    def _apart(self, now: Forward, bad: Texts) -> Float[Tensor, ""]:
        """1 - the mean cosine of different texts' last prompt tokens; 0 for one text alone."""
        count = len(bad)
        last = Places(list(range(count)), [begin - 1 for begin in bad.begins])
        units = torch.stack(
            [
                torch.nn.functional.normalize(last.of(now, now.states[n]), dim=-1)
                for n in self.layers
            ]
        )
        different = ~torch.eye(count, dtype=torch.bool, device=units.device)
        distances = (1 - units @ units.mT) * different
        return distances.sum() / max(1, len(units) * count * (count - 1))

    def _kl(
        self, chat: ChatModel, before: Forward, now: Forward, good: Texts, shift: int
    ) -> Float[Tensor, ""]:
        """From the base, summed over a text's positions; the mean over texts."""
        assert before.final is not None and now.final is not None
        where = places(good.rows, [chat.template.head] * len(good), shift)
        base, tuned = (
            logits(chat.model, out.at(final, where.rows, where.positions)) / self.terms.temperature
            for out, final in ((before, before.final), (now, now.final))
        )
        total = kl_divergence(base, tuned).sum()
        return self.terms.temperature**2 * total / len(good)
