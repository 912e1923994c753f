"""Embedding space separation (ES2): harmful and harmless prompts pushed apart at critical layers.

Source: arXiv 2603.20206. The loss is the sum over the critical layers of the negated mean distance
between harmful and harmless embeddings, plus lambda times the KL from the base model on harmless
inputs; training stops when that KL passes a threshold. `Es2Paper` is that form. The other options
are remedies for what the plain loss gets wrong (see docs/concepts.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.after_start import AfterStart, record_starts
from es2.defences.base import DEFENCES, Material, Range, seen_count, unless_few
from es2.defences.bent import Bent, record_answers
from es2.defences.inner_reference import OPENING
from es2.defences.margin import refusal_margin, refusal_start
from es2.defences.reference import Reference, kl_from, record
from es2.defences.suffixed import TOKENS, Suffixed, record_suffixed
from es2.defences.trainer import TrainSettings, batch_indices, seeded
from es2.defences.under_attack import Batch, ablated, line, moved, pushed
from es2.errors import Es2Error
from es2.models.activations import Edit
from es2.models.blocks import logits
from es2.models.forward import Forward, forward
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, reading, training
from es2.progress import bar
from es2.separation.distance import Form, batch_distance, class_distance, distance_term

_LOWEST, _HIGHEST = 0.2, 0.8
"""Layers, as shares of the depth, at which a line is read that is to be taken out, or a push starts."""


@DEFENCES.register
@dataclass(frozen=True)
class Es2:
    """Embedding space separation with remedies for what the plain loss gets wrong.

    Attributes:
        form: all pairs' distance, `raw` (the paper's) or `relative` to the base model's; or the
            distance between the classes' `centre`s, relative to the base's.
        cap: stop pushing at this multiple of the base's distance; None (the paper) never stops.
        kl_weight: lambda, the weight of the KL on harmless prompts.
        kl_threshold: training stops when the KL on harmless prompts passes this.
        kl_prompt: the KL counts every position of the prompt (the paper's reading), not its last.
        kl_first: weight of the position that predicts the first response token, against 1 for
            every other.
        response_tokens: how many tokens of the base's own response the KL covers.
        keep_refusal: weight of the KL on harmful prompts, which keeps the base's refusal.
        keep_margin: weight of the mean squared change, in nats, of the refusal margin on harmless
            prompts. KL hardly sees a refusal become likelier as long as it is unlikely.
        lean: how much that margin is to change; below zero, harmless prompts are refused less.
        consistent: train only on harmful prompts that the base refuses and harmless ones that it
            answers; on the others, KL to the base and separation pull against each other.
        response_distance: also separate at the first `response_tokens` positions of the response.
        resist: weight of the KL on harmful prompts that are read while the residual stream is moved
            towards the harmless ones: the base's refusal is kept under attack too.
        reach: how far at most it is moved, in distances between the classes' centres.
        pushed: share of steps whose rows are not moved, but pushed that way at all their tokens over
            a range of layers, as RepE does.
        push: how far at most, in norms of the residual stream.
        ablated: share of steps whose rows are read with the line between a layer's centres projected
            out at every layer, as refusal ablation does (Yu et al., arXiv 2409.20089).
        after_start: weight of the same at the end of an affirmative opening of the response: the
            refusal's cross-entropy, the distances, and `kl_weight` times the KL on harmless prompts.
        suffixed: weight of the refusal's cross-entropy behind a suffix of free vectors, searched anew
            in every step for half the batch's harmful rows.
        suffix_steps: of that search.
        bend: weight that drives the states along harmful answers, which the base was made to begin,
            away from the base's at the critical layers: who complies all the same talks nonsense.
            `kl_weight` times the KL on harmless answers as long comes with it, whatever this weight.
        bend_cap: no further than this, in norms of those states.
        bend_tokens: length of those answers.
    """

    name: ClassVar[str] = "es2"
    source: ClassVar[str] = "Zhao, Wang and Shen, arXiv 2603.20206, and this project's remedies"
    published: ClassVar[TrainSettings] = TrainSettings()
    keeps: ClassVar[str] = "distance"
    form: Form = "centre"
    cap: float | None = 2.5
    kl_weight: float = 20.0
    kl_threshold: float = 0.3
    kl_prompt: bool = False
    kl_first: float = 8.0
    response_tokens: int = 12
    keep_refusal: float = 1.0
    keep_margin: float = 1.25
    lean: float = -0.9
    consistent: bool = True
    response_distance: float = 0.0
    resist: float = 1.5
    reach: float = 1.5
    pushed: float = 0.0
    push: float = 0.06
    ablated: float = 0.0
    after_start: float = 1.0
    suffixed: float = 0.0
    suffix_steps: int = 6
    bend: float = 0.0
    bend_cap: float = 1.0
    bend_tokens: int = 32

    least: ClassVar[Mapping[str, float]] = {
        "kl_weight": 0,
        "kl_first": 1,
        "response_tokens": 0,
        "keep_refusal": 0,
        "keep_margin": 0,
        "resist": 0,
        "reach": 0,
        "pushed": 0,
        "push": 0,
        "ablated": 0,
        "response_distance": 0,
        "after_start": 0,
        "suffixed": 0,
        "suffix_steps": 1,
        "bend": 0,
        "bend_cap": 0,
        "bend_tokens": 1,
    }
    searched: ClassVar[Mapping[str, Range]] = {
        "lean": Range(-1.5, 0.0),
        "keep_margin": Range(0.25, 4.0, log=True),
        "keep_refusal": Range(0.25, 4.0, log=True),
        "resist": Range(0.25, 4.0, log=True),
        "reach": Range(0.75, 2.5),
        "kl_weight": Range(5.0, 80.0, log=True),
        "after_start": Range(0.1, 2.0, log=True),
    }

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """The record of the base's responses, then steps over both classes, pass after pass."""
        counts = [seen_count(settings, count) for count in (harmful, harmless)]
        new, head, steps = self.response_tokens, lengths.head, settings.steps
        row = lengths.own + new
        work = reading(sum(counts), row, rows, head)
        if new:
            work += answering(sum(counts), lengths.own, new, rows, head)
        bad, good = (min(settings.batch_size, count) for count in counts)
        batch = bad + good + (bad if self.resist else 0)
        scored = batch * (new + 1) + (good * lengths.prompt if self.kl_prompt else 0)
        work += training(steps, batch, row, scored, head)
        if self.resist and self.ablated:
            work += reading(self.ablated * steps * (bad + good), row, rows, head)
        if self.after_start:
            work += reading(counts[1], lengths.own, rows, head)
            work += training(steps, bad + good, row, bad * new + good, head)
        if self.suffixed:
            half, behind = (bad + 1) / 2, TOKENS + lengths.tail + lengths.target
            work += reading(steps * half, lengths.prompt, rows, head)
            work += training(steps * self.suffix_steps, half, behind, half * lengths.target)
            work += training(steps, half, row + TOKENS, half * new, head)
        if self.bend:
            added, opened = self.bend_tokens, lengths.count(OPENING)
            long = lengths.own + added
            work += answering(counts[0], lengths.own + opened, added, rows, head)
            work += answering(counts[1], lengths.own, max(0, added - new), rows, head)
            work += reading(counts[0], long, rows, head)
            work += training(steps, bad + good, long, good * added, head)
        return work

    def prepare(self, material: Material) -> Separation:
        """Records what the base does on the training prompts, and its distances."""
        chat, fit = material.chat, material.fit
        texts = material.seen(fit.harmful), material.seen(fit.harmless)
        with bar("recording the base model's answers", sum(map(len, texts))) as advance:
            harmful = record(chat, texts[0], self.response_tokens, self.kl_prompt, advance)
            harmless, answers = self.record_harmless(material, texts[1], advance)
        refused = told(material, harmful, True)
        refusals = harmful.subset(refused)
        if self.consistent:
            harmful = harmful.subset(unless_few(refused, list(range(len(harmful)))))
        return Separation(
            self,
            material.settings,
            material.layers,
            harmful,
            harmless,
            self.base_distances(material),
            refusal_start(refusals),
            self.behind_starts(chat, harmful, harmless),
            self.along_answers(material, answers),
            self.behind_suffixes(chat, harmful),
        )

    def base_distances(self, material: Material) -> dict[int, float]:
        """The base's distance at each critical layer, in batches of a step's size."""
        bad, good = material.states.harmful, material.states.harmless
        size = material.settings.batch_size
        return {
            layer: batch_distance(bad[:, layer - 1], good[:, layer - 1], self.form, size)
            for layer in material.layers
        }

    def behind_starts(
        self, chat: ChatModel, harmful: Reference, harmless: Reference
    ) -> AfterStart | None:
        """The rows whose responses start affirmatively, with the refusals that the others have.

        Raises:
            Es2Error: if they are wanted and no refusals are recorded.
        """
        if not self.after_start:
            return None
        self._needs_refusals("after_start")
        with bar("recording the base model behind openings", len(harmless)) as done:
            return record_starts(chat, harmful, harmless, done)

    def behind_suffixes(self, chat: ChatModel, harmful: Reference) -> Suffixed | None:
        """Harmful rows with room for free vectors; None if they are not wanted.

        Raises:
            Es2Error: if they are wanted and no refusals are recorded.
        """
        if not self.suffixed:
            return None
        self._needs_refusals("suffixed")
        return record_suffixed(chat, harmful)

    def _needs_refusals(self, wanted: str) -> None:
        if not self.response_tokens:
            raise Es2Error(f"{self.name}: {wanted} keeps a refusal; set response_tokens above 0")

    def record_harmless(
        self, material: Material, prompts: Sequence[str], progress: Callable[[int], None]
    ) -> tuple[Reference, Reference]:
        """What the base does on harmless prompts, as far as the KL reads and as bending does."""
        tokens = max(self.response_tokens, self.bend_tokens if self.bend else 0)
        long = record(material.chat, prompts, tokens, self.kl_prompt, progress)
        short = long.cut(self.response_tokens)
        if not self.consistent:
            return short, long
        kept = unless_few(told(material, short, False), list(range(len(short))))
        return short.subset(kept), long.subset(kept)

    def along_answers(self, material: Material, harmless: Reference) -> Bent | None:
        """Answers of both classes, and the base's states along them; None if they are not wanted."""
        return record_answers(material, harmless, self.bend_tokens) if self.bend else None


@DEFENCES.register
@dataclass(frozen=True)
class Es2Paper(Es2):
    """The published loss and no remedy. Lambda and the threshold are not known to us."""

    name: ClassVar[str] = "es2_paper"
    source: ClassVar[str] = "Zhao, Wang and Shen, arXiv 2603.20206"
    form: Form = "raw"
    cap: float | None = None
    kl_weight: float = 1.0
    kl_threshold: float = 0.05
    kl_prompt: bool = True
    kl_first: float = 1.0
    response_tokens: int = 0
    keep_refusal: float = 0.0
    keep_margin: float = 0.0
    resist: float = 0.0
    after_start: float = 0.0
    consistent: bool = False

    searched: ClassVar[Mapping[str, Range]] = {"kl_weight": Range(0.1, 100.0, log=True)}


def told(material: Material, reference: Reference, refused: bool) -> list[int]:
    """Which rows' recorded responses refuse, or which do not."""
    rows = zip(reference.rows, reference.firsts, strict=True)
    return material.telling((row[first + 1 :] for row, first in rows), refused)


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
        bent: harmful answers; None likewise.
        suffixed: harmful prompts with room for free vectors; None likewise.
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
    bent: Bent | None = None
    suffixed: Suffixed | None = None

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
        """The batch as it stands; behind openings; behind suffixes; along harmful answers."""
        size, seed, terms = self.settings.batch_size, self.settings.seed, self.terms
        bad = batch_indices(len(self.harmful), size, step, seed)
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        yield self._plain(chat, step, bad, good)
        if self.after is not None:
            behind, metrics = self._behind_start(self.after, chat, bad, good)
            yield terms.after_start * behind, metrics
        if self.suffixed is not None:
            half = bad[: (len(bad) + 1) // 2]
            kept, metrics = self.suffixed.loss(
                chat, half, terms.suffix_steps, seeded(seed + 3, step)
            )
            yield terms.suffixed * kept, metrics
        if self.bent is not None:
            read = self.bent.read(chat, size, step, seed)
            reached = sum(left.clamp(max=terms.bend_cap) for left in read.left.values())
            metrics = {f"bent_{layer}": float(left.detach()) for layer, left in read.left.items()}
            metrics["kl_answers"] = float(read.kl.detach())
            yield terms.kl_weight * read.kl - terms.bend * reached, metrics

    def _plain(
        self, chat: ChatModel, step: int, bad: Sequence[int], good: Sequence[int]
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
        keep = min(starts)
        if terms.resist:
            batch = Batch(split, firsts, max(map(len, whole)))
            edits, everywhere = self._attacked(chat, step, whole, batch)
            # What is changed at all tokens has to be in the stream; the template's start never is.
            keep = min(keep, chat.template.head) if everywhere else keep
            whole += whole[:split]
        out = forward(chat, whole, layers=self.layers, keep=keep, edits=edits)
        total = torch.zeros((), device=chat.device)
        metrics: dict[str, float] = {}
        for layer in self.layers:
            states = out.at(out.states[layer], range(plain), firsts)
            distance = self._distance(states, split)
            base = self.base_distance[layer]
            total = total + distance_term(distance, base, terms.form, terms.cap)
            metrics[f"distance_{layer}"] = float(distance.detach())
            metrics[f"distance_ratio_{layer}"] = float(distance.detach()) / base
            along = self._along_response(out, layer, whole[:plain], firsts, split)
            if along is not None:
                total = total + terms.response_distance * distance_term(
                    along, base, terms.form, terms.cap
                )
                metrics[f"response_distance_ratio_{layer}"] = float(along.detach()) / base
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
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Refusal, KL and distances behind the batch's affirmative openings, and what to log."""
        terms = self.terms
        read = after.read(chat, self.layers, bad, good)
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

    def _attacked(
        self, chat: ChatModel, step: int, rows: Sequence[Sequence[int]], batch: Batch
    ) -> tuple[dict[int, Edit], bool]:
        """What is done to the batch's last rows in a step, by layer; and whether to all tokens."""
        seed, terms, head, depth = self.settings.seed, self.terms, chat.template.head, chat.depth
        # Batches and pushes are drawn by the seed itself and the one after it.
        kind, place, width = torch.rand(3, generator=seeded(seed + 2, step)).tolist()
        sizes = torch.rand(batch.split, 1, generator=seeded(seed, step)).to(chat.device)
        layer = max(1, round((_LOWEST + place * (_HIGHEST - _LOWEST)) * depth))
        if kind < terms.ablated:
            edit = ablated(batch, head, line(chat, rows, batch, layer))
            return dict.fromkeys(range(depth + 1), edit), True
        if kind < terms.ablated + terms.pushed:
            last = min(depth, layer + round((0.2 + 0.4 * width) * depth))
            edit = pushed(batch, head, terms.push * sizes)
            return dict.fromkeys(range(layer, last + 1), edit), True
        edit = moved(batch, terms.reach * sizes)
        return dict.fromkeys(range(min(self.layers), max(self.layers) + 1), edit), False

    def _distance(self, states: Float[Tensor, "n d"], split: int) -> Float[Tensor, ""]:
        """Between the harmful rows, the first `split`, and the harmless ones."""
        return class_distance(states[:split], states[split:], self.terms.form)

    def _along_response(
        self,
        out: Forward,
        layer: int,
        rows: Sequence[Sequence[int]],
        firsts: Sequence[int],
        split: int,
    ) -> Float[Tensor, ""] | None:
        """Mean distance over the response positions that every row has; None if not wanted.

        A row that ends at once leaves no position to separate at.
        """
        shortest = min(len(row) - 1 - first for row, first in zip(rows, firsts, strict=True))
        if not (self.terms.response_distance and shortest):
            return None
        distances = []
        for step in range(1, shortest + 1):
            states = out.at(out.states[layer], range(len(rows)), [f + step for f in firsts])
            distances.append(self._distance(states, split))
        return torch.stack(distances).mean()

    def stop(self, history: Sequence[Mapping[str, float]]) -> str | None:
        """Ends training when the KL, averaged over four steps, passes the threshold.

        One batch's KL is noisy: a single outlier must not end a run.
        """
        recent = [line["kl"] for line in history[-4:]]
        mean = sum(recent) / len(recent)
        if len(recent) == 4 and mean > self.terms.kl_threshold:
            return f"KL on harmless prompts {mean:.3f} passed {self.terms.kl_threshold}"
        return None
