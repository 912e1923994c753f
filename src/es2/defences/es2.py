"""Embedding space separation (ES2): harmful and harmless prompts pushed apart at critical layers.

Source: arXiv 2603.20206. The loss is the sum over the critical layers of the negated mean distance
between harmful and harmless embeddings, plus lambda times the KL from the base model on harmless
inputs; training stops when that KL passes a threshold. `Es2Paper` is that form. The other options
are remedies for what the plain loss gets wrong (see docs/concepts.md). Here are the options and what
is recorded before training; the loss itself is in objective.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from es2.defences.ablated import Ablated, expected_ablated, lines_at
from es2.defences.after_start import AfterStart, record_starts
from es2.defences.base import DEFENCES, Material, Range, seen_count, unless_few
from es2.defences.beginnings import (
    DEPTHS,
    Beginnings,
    expected_beginnings,
    harmful_beginnings,
    harmless_beginnings,
    longest,
)
from es2.defences.margin import refusal_start
from es2.defences.objective import Separation
from es2.defences.reference import Reference, record
from es2.defences.suffixed import Suffixed, expected_suffixed, record_suffixed
from es2.defences.trainer import TrainSettings
from es2.errors import Es2Error
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, reading, training
from es2.progress import bar, console
from es2.separation.distance import Form, batch_distance


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
        consistent: train only on harmful prompts that the base refuses, if it refuses any, and harmless
            ones that it answers; on the others, KL to the base and separation pull against each other.
        resist: weight of the KL on harmful prompts that are read while the residual stream is moved
            towards the harmless ones: the base's refusal is kept under attack too.
        reach: how far at most it is moved, in distances between the classes' centres.
        ablated: weight of the same with the line between a layer's centres taken out everywhere, as
            refusal ablation takes out a direction, in every other step.
        after_start: weight of the same at the end of an affirmative opening of the response, or of
            an answer well begun: the refusal's cross-entropy, the distances, and `kl_weight` times the
            KL on harmless prompts.
        suffixed: weight of the refusal's cross-entropy behind a suffix of free vectors, for half the
            batch's harmful rows; `kl_first` weighs its first token. Suffixes start from those of an
            attack on the base.
        suffix_steps: by which each is moved on against the model as it stands.
    """

    name: ClassVar[str] = "es2"
    source: ClassVar[str] = "Zhao, Wang and Shen, arXiv 2603.20206, and this project's remedies"
    # The publication gives no settings; these are for a small model, chosen on validation prompts.
    # Harmless prompts come to be refused too often halfway and are answered again at the end, when
    # steps are small: no run is given up before its last validation.
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=120, lr=1e-3, validate_every=40, patience=3
    )
    # Refusal behind suffixes is still being learnt when the distance has reached its cap.
    keeps: ClassVar[str] = "last"
    form: Form = "centre"
    cap: float | None = 2.5
    kl_weight: float = 20.0
    kl_threshold: float = 0.3
    kl_prompt: bool = False
    kl_first: float = 8.0
    response_tokens: int = 12
    keep_refusal: float = 3.0
    keep_margin: float = 3.0
    lean: float = -0.9
    consistent: bool = True
    resist: float = 2.0
    reach: float = 2.5
    ablated: float = 8.0
    after_start: float = 1.0
    suffixed: float = 4.0
    suffix_steps: int = 3

    least: ClassVar[Mapping[str, float]] = {
        "kl_weight": 0,
        "kl_first": 1,
        "response_tokens": 0,
        "keep_refusal": 0,
        "keep_margin": 0,
        "resist": 0,
        "reach": 0,
        "ablated": 0,
        "after_start": 0,
        "suffixed": 0,
        "suffix_steps": 1,
    }
    searched: ClassVar[Mapping[str, Range]] = {
        "lean": Range(-1.5, 0.0),
        "keep_margin": Range(0.25, 4.0, log=True),
        "keep_refusal": Range(0.25, 4.0, log=True),
        "resist": Range(0.25, 4.0, log=True),
        "reach": Range(0.75, 4.0),
        "kl_weight": Range(5.0, 80.0, log=True),
        "ablated": Range(1.0, 16.0, log=True),
        "after_start": Range(0.1, 2.0, log=True),
        "suffixed": Range(0.5, 8.0, log=True),
    }

    @property
    def harmless_tokens(self) -> int:
        """How much of the base's answers to harmless prompts is recorded: as far as anything reads."""
        begun = self.after_start or self.suffixed
        return max(self.response_tokens, max(DEPTHS) if begun else 0)

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """The record of the base's responses, then steps over both classes, pass after pass."""
        counts = [seen_count(settings, count) for count in (harmful, harmless)]
        new, head, steps = self.response_tokens, lengths.head, settings.steps
        work = Work()
        for count, tokens in zip(counts, (new, self.harmless_tokens), strict=True):
            if tokens or not self.kl_prompt:
                work += answering(count, lengths.own, tokens, rows, head)
            if self.kl_prompt:
                work += reading(count, lengths.own + tokens, rows, head)
        bad, good = (min(settings.batch_size, count) for count in counts)
        if self.ablated:
            work += expected_ablated(steps, lengths, bad, harmful, rows, new)
        if self.after_start or self.suffixed:
            work += expected_beginnings(lengths, counts[0], rows)
        if self.after_start:
            work += reading(counts[1], lengths.own, rows, head)
        if self.suffixed:
            work += expected_suffixed(settings, lengths, harmful, rows, self.suffix_steps, new)
        return work + training(steps, 1, *self._batch(lengths, bad, good), head)

    def _batch(self, lengths: Lengths, bad: int, good: int) -> tuple[float, float]:
        """Tokens that a step reads of so many prompts of each class, and positions it scores."""
        new, plain = self.response_tokens, bad + good + (bad if self.resist else 0)
        # Prompts are read once for all that goes on from them, if nothing looks at more.
        again = lengths.own if self.kl_prompt else 0.0
        tokens = (bad + good) * (lengths.own - again) + plain * (again + new + 1)
        scored = plain * (new + 1) + (good * lengths.prompt if self.kl_prompt else 0.0)
        if self.after_start:
            tokens += (bad + good) * (again + longest(lengths)) + bad * new
            scored += bad * new + good
        if self.suffixed:
            long = (good + 1) // 2 * (again + max(DEPTHS))
            tokens, scored = tokens + long, scored + long
        return tokens, scored

    def prepare(self, material: Material) -> Separation:
        """Records what the base does on the training prompts, and its distances."""
        chat, fit = material.chat, material.fit
        texts = material.seen(fit.harmful), material.seen(fit.harmless)
        with bar("recording the base model's answers", sum(map(len, texts))) as advance:
            harmful = record(chat, texts[0], self.response_tokens, self.kl_prompt, advance)
            harmless, answers = self.record_harmless(material, texts[1], advance)
        refused = told(material, harmful, True)
        refusals = harmful.subset(refused)
        if self.response_tokens and len(refused) < len(harmful) / 4:
            console.print(
                f"{chat.name} refuses {len(refused)} of {len(harmful)} harmful prompts; {self.name} "
                "keeps refusals and teaches none: align the model first, or train es2+safety_sft",
                highlight=False,
                markup=False,
            )
        if self.consistent and refused:
            harmful = harmful.subset(refused)
        starts = self.beginnings(material, harmful, answers)
        return Separation(
            self,
            material.settings,
            material.layers,
            harmful,
            harmless,
            self.base_distances(material),
            refusal_start(refusals),
            self.behind_starts(chat, harmful, harmless, starts),
            self.behind_suffixes(material, harmful, starts[0], answers),
            self.without_direction(material),
        )

    def base_distances(self, material: Material) -> dict[int, float]:
        """The base's distance at each critical layer, in batches of a step's size."""
        bad, good = material.states.harmful, material.states.harmless
        size = material.settings.batch_size
        return {
            layer: batch_distance(bad[:, layer - 1], good[:, layer - 1], self.form, size)
            for layer in material.layers
        }

    def rebatched(self, objective: Separation, material: Material) -> Separation:
        """The objective with the material's settings, and the distances that go with their batches."""
        distances = self.base_distances(material)
        return replace(objective, settings=material.settings, base_distance=distances)

    def beginnings(self, material: Material, harmful: Reference, answers: Reference) -> Beginnings:
        """How responses of both classes begin, as token ids; nothing if that is not wanted.

        Raises:
            Es2Error: if they are wanted and no refusals are recorded.
        """
        wanted = [name for name in ("after_start", "suffixed") if getattr(self, name)]
        if not wanted:
            return [], []
        rows = zip(harmful.rows, harmful.firsts, strict=True)
        if not any(len(row) > first + 1 for row, first in rows):
            what = f"{self.name}: {wanted[0]} keeps a refusal"
            raise Es2Error(f"{what}; set response_tokens above 0")
        with bar("the base model's answers behind openings", len(harmful)) as advance:
            found = harmful_beginnings(material, harmful, advance)
        return found, harmless_beginnings(material.chat, answers)

    def behind_starts(
        self, chat: ChatModel, harmful: Reference, harmless: Reference, starts: Beginnings
    ) -> AfterStart | None:
        """The rows whose responses have begun, with the refusals that the others have."""
        if not self.after_start:
            return None
        with bar("recording the base model behind openings", len(harmless)) as done:
            return record_starts(chat, harmful, harmless, starts, done)

    def behind_suffixes(
        self,
        material: Material,
        harmful: Reference,
        starts: Sequence[list[int]],
        harmless: Reference,
    ) -> Suffixed | None:
        """Harmful rows with room for free vectors, and answers; None if they are not wanted."""
        if not self.suffixed:
            return None
        return record_suffixed(material, harmful, starts, harmless.cut(max(DEPTHS)))

    def without_direction(self, material: Material) -> Ablated | None:
        """The layers at which a line is read that is taken out; None if that is not wanted."""
        if not self.ablated:
            return None
        return Ablated(lines_at(material.chat, material.states, material.fit.held_harmful))

    def record_harmless(
        self, material: Material, prompts: Sequence[str], progress: Callable[[int], None]
    ) -> tuple[Reference, Reference]:
        """What the base does on harmless prompts, as far as the KL reads and as anything does."""
        long = record(material.chat, prompts, self.harmless_tokens, self.kl_prompt, progress)
        short = long.cut(self.response_tokens)
        if not self.consistent:
            return short, long
        kept = unless_few(told(material, short, False), list(range(len(short))))
        return short.subset(kept), long.subset(kept)


@DEFENCES.register
@dataclass(frozen=True)
class Es2Paper(Es2):
    """The published loss and no remedy. Lambda and the threshold are not known to us."""

    name: ClassVar[str] = "es2_paper"
    source: ClassVar[str] = "Zhao, Wang and Shen, arXiv 2603.20206"
    # Without validation, what training ends with is kept: the publication chooses no checkpoint.
    published: ClassVar[TrainSettings] = TrainSettings(validate_every=0)
    keeps: ClassVar[str] = "distance"
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
    ablated: float = 0.0
    after_start: float = 0.0
    suffixed: float = 0.0
    consistent: bool = False

    searched: ClassVar[Mapping[str, Range]] = {"kl_weight": Range(0.1, 100.0, log=True)}


def told(material: Material, reference: Reference, refused: bool) -> list[int]:
    """Which rows' recorded responses refuse, or which do not."""
    rows = zip(reference.rows, reference.firsts, strict=True)
    return material.telling((row[first + 1 :] for row, first in rows), refused)
