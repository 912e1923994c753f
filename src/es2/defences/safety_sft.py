"""Safety tuning by supervised fine-tuning (STL): refuse harmful prompts, answer harmless ones.

Source: Bianchi et al., "Safety-Tuned LLaMAs" (arXiv 2309.07875): a few refusals mixed into ordinary
instructions, cross-entropy on the response. The answers to harmless prompts are the model's own, so
that tuning teaches it nothing but to refuse; `soft` holds it to itself on them at every token that it
might have said, by KL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from es2.defences.base import DEFENCES, Material, Range, seen_count
from es2.defences.reference import Reference, kl_from, record
from es2.defences.responses import read_responses
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.forward import forward
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, answering, training
from es2.progress import bar

REFUSAL = "I'm sorry, but I can't help with that."


@DEFENCES.register
@dataclass(frozen=True)
class SafetySft:
    """Supervised safety tuning: cross-entropy of a refusal, and of the model's own answers.

    Attributes:
        refusal: the response to every harmful prompt.
        ratio: harmless rows for each harmful one. Published: 20 000 to at most 2000.
        soft: harmless rows are held by KL from the model as it was, instead of cross-entropy.
        keep: weight of the harmless rows' loss.
        first: weight of the first response token, which decides between refusal and answer, against
            1 for every other.
        answer_tokens: length of the model's own answers.
    """

    name: ClassVar[str] = "safety_sft"
    source: ClassVar[str] = "Bianchi et al., arXiv 2309.07875"
    # 3 epochs of 22 000 rows in batches of 128; here a step has `batch_size` harmful rows.
    published: ClassVar[TrainSettings] = TrainSettings(
        steps=516, batch_size=12, lr=3e-4, rank=8, alpha=16, validate_every=0
    )
    keeps: ClassVar[str] = "last"
    refusal: str = REFUSAL
    ratio: int = 10
    soft: bool = False
    keep: float = 1.0
    first: float = 1.0
    answer_tokens: int = 48

    least: ClassVar[Mapping[str, float]] = {"ratio": 1, "keep": 0, "first": 0, "answer_tokens": 1}
    searched: ClassVar[Mapping[str, Range]] = {
        "keep": Range(0.25, 8.0, log=True),
        "first": Range(1.0, 16.0, log=True),
    }

    def expected(
        self, settings: TrainSettings, lengths: Lengths, harmful: int, harmless: int, rows: int
    ) -> Work:
        """The model's own answers to harmless prompts, then steps over refusals and answers."""
        size = settings.batch_size
        answered = seen_count(settings, harmless, self.ratio * size)
        row = lengths.own + self.answer_tokens
        recorded = answering(answered, lengths.own, self.answer_tokens, rows, lengths.head)
        bad, good = min(size, harmful), min(self.ratio * size, answered)
        refused = lengths.count(self.refusal) + 1
        scored = bad * refused + good * self.answer_tokens
        # Rows are padded to the longest of the step.
        return recorded + training(settings.steps, bad + good, row, scored, lengths.head)

    def prepare(self, material: Material) -> Tuning:
        """Token rows to train on."""
        size, fit = material.settings.batch_size, material.fit
        good = material.seen(fit.harmless, self.ratio * size)
        bad = material.seen(fit.harmful)
        with bar("the model's own answers", len(good)) as advance:
            return self.rows(material.chat, bad, good, material.settings, advance)

    def rows(
        self,
        chat: ChatModel,
        harmful: Sequence[str],
        harmless: Sequence[str],
        settings: TrainSettings,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tuning:
        """Refusals for harmful prompts, the model's own answers for others.

        Args:
            chat: the model as it is.
            harmful: prompts to refuse.
            harmless: prompts to answer as before.
            settings: of the training loop.
            progress: called with the number of harmless prompts answered.
        """
        template, stop = chat.template, min(chat.stop_ids)
        refused = [
            ([*template.encode(prompt, self.refusal), stop], len(template.encode(prompt)))
            for prompt in harmful
        ]
        answered = record(chat, harmless, self.answer_tokens, progress=progress)
        return Tuning(self, settings, refused, answered)


@dataclass
class Tuning:
    """Safety tuning's objective for the trainer.

    Attributes:
        terms: the loss.
        settings: of the training loop; `batch_size` harmful rows a step.
        harmful: token rows, harmful prompt then refusal; with the index where the refusal starts.
        harmless: what the model does on harmless prompts.
    """

    terms: SafetySft
    settings: TrainSettings
    harmful: Sequence[tuple[list[int], int]]
    harmless: Reference

    def loss(self, chat: ChatModel, step: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Weighed mean cross-entropy over the refusals' tokens, plus what holds harmless rows."""
        terms, size, seed = self.terms, self.settings.batch_size, self.settings.seed
        bad = [self.harmful[i] for i in batch_indices(len(self.harmful), size, step, seed)]
        good = batch_indices(len(self.harmless), terms.ratio * size, step, seed + 1)
        rows = [row for row, _ in bad] + [self.harmless.rows[i] for i in good]
        begins = [start for _, start in bad] + [self.harmless.firsts[i] + 1 for i in good]
        out = forward(chat, rows, keep=min(begins) - 1)
        split = len(bad)
        refused = read_responses(chat, out, rows[:split], begins[:split])
        refusal, first = refused.cross_entropy(terms.first)
        metrics = {"cross_entropy": float(refusal.detach()), "first": first}
        if terms.soft:
            kept = kl_from(self.harmless, good, chat, out, split, terms.first)
            metrics["kl"] = float(kept.detach())
        else:
            answered = read_responses(chat, out, rows[split:], begins[split:], split)
            kept, _ = answered.cross_entropy(terms.first)
            metrics["cross_entropy_harmless"] = float(kept.detach())
        return refusal + terms.keep * kept, metrics
