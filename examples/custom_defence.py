"""A defence of your own: refusing is taught behind an affirmative start. Run this file to see it train.

In a package, an entry point makes `es2 harden --defence deeper`, recipes and `es2 compare` find it:

    [project.entry-points."es2.defences"]
    deeper = "my_package:Deeper"
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import es2
from es2.defences import DEFENCES
from es2.defences.base import Material
from es2.defences.reference import Reference, kl_from, record
from es2.defences.responses import read_responses
from es2.defences.safety_sft import REFUSAL
from es2.defences.trainer import TrainSettings, batch_indices
from es2.models.forward import forward


@DEFENCES.register
@dataclass(frozen=True)
class Deeper:
    """Teaches a refusal that comes after "Sure", and holds the answers to harmless prompts."""

    name: ClassVar[str] = "deeper"
    source: ClassVar[str] = "an example, after Qi et al., arXiv 2406.05946"
    published: ClassVar[TrainSettings] = TrainSettings(validate_every=0)
    keeps: ClassVar[str] = "last"
    keep: float = 10.0

    def prepare(self, material: Material) -> "Teaching":
        """Harmful prompts with a start and a refusal, and what the base says to harmless ones."""
        chat, fit = material.chat, material.fit
        starts = [chat.template.encode(prompt, "Sure") for prompt in material.seen(fit.harmful)]
        refusal = [*chat.template.encode_response(f"\n\n{REFUSAL}"), min(chat.stop_ids)]
        rows = [(start + refusal, len(start)) for start in starts]
        answers = record(chat, material.seen(fit.harmless), 8)
        return Teaching(self, material.settings, rows, answers)


@dataclass
class Teaching:
    """The loss, a pure function of model and step; es2 does the rest."""

    terms: Deeper
    settings: TrainSettings
    harmful: list[tuple[list[int], int]]
    harmless: Reference

    def loss(self, chat: es2.ChatModel, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the refusals, and the KL from the base along its harmless answers."""
        size, seed = self.settings.batch_size, self.settings.seed
        bad = [self.harmful[i] for i in batch_indices(len(self.harmful), size, step, seed)]
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        rows = [row for row, _ in bad] + [self.harmless.rows[i] for i in good]
        begins = [begin for _, begin in bad]
        out = forward(chat, rows, keep=min(begins + [self.harmless.firsts[i] for i in good]) - 1)
        read = read_responses(chat, out, [row for row, _ in bad], begins)
        refusal, _ = read.cross_entropy()
        kl = kl_from(self.harmless, good, chat, out, len(bad), 1.0)
        metrics = {"refusal": float(refusal.detach()), "kl": float(kl.detach())}
        return refusal + self.terms.keep * kl, metrics


if __name__ == "__main__":
    few, short = es2.bundled_fit().at_most(24), TrainSettings(steps=6, validate_every=0)
    hardened = es2.harden(
        es2.load("smollm2-aligned"), "runs/deeper", fit=few, defence=Deeper(), settings=short
    )
    for line in hardened.progress.history:
        print(f"step {line['step']}: refusal {line['refusal']:.2f} nats, KL {line['kl']:.4f}")
