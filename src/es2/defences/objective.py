"""ES2's loss: one forward pass over both classes, and what its options add, part by part.

Source: arXiv 2603.20206; the options, and what each is for, are those of `Es2` in es2.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.ablated import CENTRE, EVERY, Ablated
from es2.defences.after_start import AfterStart
from es2.defences.margin import refusal_margin
from es2.defences.reference import Reference, kl_from
from es2.defences.suffixed import Suffixed
from es2.defences.trainer import TrainSettings, batch_indices, seeded
from es2.defences.under_attack import Batch, moved
from es2.models.activations import Edit
from es2.models.blocks import logits
from es2.models.forward import Forward, Starts, forward, read_starts
from es2.models.loading import ChatModel
from es2.separation.distance import class_distance, distance_term

if TYPE_CHECKING:
    from es2.defences.es2 import Es2


@dataclass
class Separation:
    """ES2's objective for the trainer.

    Attributes:
        terms: the loss.
        settings: of the training loop.
        layers: the critical layers.
        harmful: reference on harmful prompts; its responses are the base's refusals.
        harmless: reference on harmless prompts.
        base_distance: the base's distance at each layer, see `batch_distance`.
        refusal: the first token of the base's refusals, where they are known.
        after: the same prompts behind affirmative openings; None where they are not wanted.
        suffixed: harmful prompts with room for free vectors; None likewise.
        ablated: where a line is read that is taken out; None likewise.
    """

    holds: ClassVar[str] = "kl"
    """What keeps the refusal on harmful rows, as metrics have it."""

    terms: Es2
    settings: TrainSettings
    layers: tuple[int, ...]
    harmful: Reference
    harmless: Reference
    base_distance: Mapping[int, float]
    refusal: int | None = None
    after: AfterStart | None = None
    suffixed: Suffixed | None = None
    ablated: Ablated | None = None

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The sum of the parts."""
        total = torch.zeros((), device=chat.device)
        metrics: dict[str, float] = {}
        for part, more in self.parts(chat, step):
            total, metrics = total + part, metrics | more
        return total, metrics

    def parts(
        self, chat: ChatModel, step: int
    ) -> Iterator[tuple[Float[Tensor, ""], dict[str, float]]]:
        """The batch, prompts read once; behind suffixes; and without a direction."""
        size, seed, terms = self.settings.batch_size, self.settings.seed, self.terms
        bad = batch_indices(len(self.harmful), size, step, seed)
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        yield self._batch(chat, step, bad, good)
        if self.suffixed is not None:
            refusal, metrics = self.suffixed.read(
                chat, _half(bad), terms.suffix_steps, seeded(seed + 3, step), terms.kl_first
            )
            yield terms.suffixed * refusal, metrics
        if self.ablated is not None and step % EVERY == 0:
            kept = self._without_direction(self.ablated, chat, step, bad)
            yield terms.ablated * kept, {f"{self.holds}_ablated": float(kept.detach())}

    def _batch(
        self, chat: ChatModel, step: int, bad: Sequence[int], good: Sequence[int]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The batch as it stands, behind openings, and along answers as long as harmful ones."""
        terms, before = self.terms, self._before(chat, bad, good)
        total, metrics = self._plain(chat, step, bad, good, before)
        if self.after is not None:
            kept, more = self._behind_start(self.after, chat, bad, good, before)
            total, metrics = total + terms.after_start * kept, metrics | more
        if self.suffixed is not None:
            some = _half(good)
            places = range(len(bad), len(bad) + len(some))
            kl = self.suffixed.drift(chat, some, before.pick(places) if before else None)
            total = total + terms.suffixed * terms.kl_weight * kl
            metrics["kl_along_answers"] = float(kl.detach())
        return total, metrics

    def _before(self, chat: ChatModel, bad: Sequence[int], good: Sequence[int]) -> Starts | None:
        """What stands before the last prompt token, which all rows of a prompt have in common.

        None where the model cannot keep it, and where the KL looks at it.
        """
        if self.terms.kl_prompt:
            return None
        pairs = [(self.harmful, i) for i in bad] + [(self.harmless, i) for i in good]
        prompts = [of.rows[i][: of.starts[i]] for of, i in pairs]
        return read_starts(chat, prompts, self._longest) if all(prompts) else None

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest row that starts with a prompt as it stands."""
        rows = [*self.harmful.rows, *self.harmless.rows]
        if self.after is not None:
            rows += [row for row, _ in self.after.harmful] + self.after.harmless.rows
        if self.suffixed is not None:
            rows += self.suffixed.harmless.rows
        return max(map(len, rows))

    def _plain(
        self,
        chat: ChatModel,
        step: int,
        bad: Sequence[int],
        good: Sequence[int],
        before: Starts | None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """One forward pass for both classes: distances at the layers, KL from final states.

        Where refusal is to resist, the harmful rows are in the batch once more, and moved.
        """
        terms = self.terms
        whole = [self.harmful.rows[i] for i in bad] + [self.harmless.rows[i] for i in good]
        starts = [self.harmful.starts[i] for i in bad] + [self.harmless.starts[i] for i in good]
        firsts = [self.harmful.firsts[i] for i in bad] + [self.harmless.firsts[i] for i in good]
        split, plain = len(bad), len(whole)
        edits: dict[int, Edit] = {}
        keep, places = min(starts), list(range(plain))
        if terms.resist:
            # Columns are those of the stream that edits see: of rows behind their starts, if any.
            cut = before.lengths if before else [0] * plain
            ends = [first - gone for first, gone in zip(firsts, cut, strict=True)]
            longest = max(len(row) - gone for row, gone in zip(whole, cut, strict=True))
            edits = self._moved(chat, step, Batch(split, ends, longest))
            whole, places = whole + whole[:split], places + places[:split]
        picked = before.pick(places) if before else None
        out = forward(chat, whole, layers=self.layers, keep=keep, edits=edits, starts=picked)
        total = torch.zeros((), device=chat.device)
        metrics: dict[str, float] = {}
        for layer in self.layers:
            states = out.at(out.states[layer], range(plain), firsts)
            distance = self._distance(states, split)
            base = self.base_distance[layer]
            total = total + distance_term(distance, base, terms.form, terms.cap)
            metrics[f"distance_{layer}"] = float(distance.detach())
            metrics[f"distance_ratio_{layer}"] = float(distance.detach()) / base
        kl = kl_from(self.harmless, good, chat, out, split, terms.kl_first)
        metrics["kl"] = float(kl.detach())
        total = total + terms.kl_weight * kl
        if terms.keep_refusal:
            kept = self.hold(chat, out, bad, 0)
            metrics[f"{self.holds}_harmful"] = float(kept.detach())
            total = total + terms.keep_refusal * kept
        if terms.keep_margin and self.refusal is not None:
            change = self._margin_change(chat, out, good, split, self.refusal)
            metrics["margin_change"] = float(change.detach().mean())
            total = total + terms.keep_margin * (change - terms.lean).square().mean()
        if terms.resist:
            moved = self.hold(chat, out, bad, plain)
            metrics[f"{self.holds}_moved"] = float(moved.detach())
            total = total + terms.resist * moved
        return total, metrics

    def hold(
        self, chat: ChatModel, out: Forward, picked: Sequence[int], shift: int
    ) -> Float[Tensor, ""]:
        """What keeps the refusal on harmful rows, which stand in the batch from `shift` on."""
        return kl_from(self.harmful, picked, chat, out, shift, self.terms.kl_first)

    def _behind_start(
        self,
        after: AfterStart,
        chat: ChatModel,
        bad: Sequence[int],
        good: Sequence[int],
        before: Starts | None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Refusal, KL and distances behind the batch's affirmative openings, and what to log."""
        terms = self.terms
        read = after.read(chat, self.layers, bad, good, before)
        total = read.refusal + terms.kl_weight * read.kl
        metrics = {
            "cross_entropy_after_start": float(read.refusal.detach()),
            "kl_after_start": float(read.kl.detach()),
        }
        for layer in self.layers:
            distance, base = self._distance(read.states[layer], len(bad)), self.base_distance[layer]
            total = total + distance_term(distance, base, terms.form, terms.cap)
            metrics[f"after_start_distance_ratio_{layer}"] = float(distance.detach()) / base
        return total, metrics

    def _margin_change(
        self, chat: ChatModel, out: Forward, good: Sequence[int], split: int, refusal: int
    ) -> Float[Tensor, "n"]:
        """By how much the harmless rows, from `split` on, have become likelier to be refused."""
        assert out.final is not None
        was = self.harmless
        now = out.at(out.final, range(split, split + len(good)), [was.firsts[i] for i in good])
        then = torch.stack([was.hidden[i][was.firsts[i] - was.starts[i]] for i in good])
        return refusal_margin(logits(chat.model, now), refusal) - refusal_margin(
            logits(chat.model, then), refusal
        )

    def _moved(self, chat: ChatModel, step: int, batch: Batch) -> dict[int, Edit]:
        """What moves the batch's last rows in a step, by layer."""
        sizes = torch.rand(batch.split, 1, generator=seeded(self.settings.seed, step))
        edit = moved(batch, self.terms.reach * sizes.to(chat.device))
        return dict.fromkeys(range(min(self.layers), max(self.layers) + 1), edit)

    def _without_direction(
        self, read: Ablated, chat: ChatModel, step: int, bad: Sequence[int]
    ) -> Float[Tensor, ""]:
        """What keeps the refusal of the harmful rows, with a line taken out of the model."""
        # Batches, moves and suffixes are drawn by the seed itself, the one after it and the third.
        seed = self.settings.seed + 2
        harmful, harmless = (
            of.prompts(batch_indices(len(of), CENTRE, step, seed))
            for of in (self.harmful, self.harmless)
        )
        rows = [self.harmful.rows[i] for i in bad]
        heads = self.harmful.prompts(bad)
        out = read.read(chat, rows, heads, harmful, harmless, seeded(seed, step))
        return self.hold(chat, out, bad, 0)

    def _distance(self, states: Float[Tensor, "n d"], split: int) -> Float[Tensor, ""]:
        """Between the harmful rows, the first `split`, and the harmless ones."""
        return class_distance(states[:split], states[split:], self.terms.form)

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Ends training when the KL, averaged over four steps, passes the threshold.

        One batch's KL is noisy: a single outlier must not end a run.
        """
        recent = [line["kl"] for line in history[-4:]]
        mean = sum(recent) / len(recent)
        if len(recent) == 4 and mean > self.terms.kl_threshold:
            return f"KL on harmless prompts {mean:.3f} passed {self.terms.kl_threshold}"
        return None


def _half(batch: Sequence[int]) -> Sequence[int]:
    """The rows of a batch that long answers and suffixes are read for."""
    return batch[: (len(batch) + 1) // 2]
