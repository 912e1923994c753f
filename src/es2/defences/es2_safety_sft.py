"""Separation on top of refusal tuning: a model is taught to refuse while the classes are separated.

ES2 (arXiv 2603.20206) keeps the refusals that a base model has; one that complies has none to keep.
Here harmful rows carry a refusal that is taught by cross-entropy, as in safety tuning (Bianchi et
al., arXiv 2309.07875), in each place where ES2 holds the base's own by KL: as the prompt stands, under
a push towards the harmless rows, and behind an affirmative start. Harmless rows are ES2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from es2.defences.base import DEFENCES, Material
from es2.defences.es2 import Es2
from es2.defences.objective import Separation
from es2.defences.reference import Reference
from es2.defences.responses import read_responses
from es2.defences.safety_sft import REFUSAL
from es2.models.forward import Forward
from es2.models.loading import ChatModel
from es2.progress import bar


@DEFENCES.register
@dataclass(frozen=True)
class Es2SafetySft(Es2):
    """Embedding space separation that teaches a refusal instead of keeping the base's.

    `keep_refusal` and `resist` weigh the refusal's cross-entropy in place of a KL; `kl_first` weighs
    its first token; `consistent` leaves out harmless prompts only.

    Attributes:
        refusal: the response to every harmful prompt.
    """

    name: ClassVar[str] = "es2+safety_sft"
    source: ClassVar[str] = (
        "this project; Zhao, Wang and Shen, arXiv 2603.20206, and Bianchi et al., arXiv 2309.07875"
    )
    refusal: str = REFUSAL

    def prepare(self, material: Material) -> TaughtSeparation:
        """Refusals for harmful prompts; what the base does on harmless ones, and its distances."""
        chat, fit = material.chat, material.fit
        template = chat.template
        said = [*template.encode_response(self.refusal), min(chat.stop_ids)]
        heads = [template.encode(prompt) for prompt in material.seen(fit.harmful)]
        firsts = [len(head) - 1 for head in heads]
        # No states: nothing is held to what the base does on these.
        harmful = Reference([[*head, *said] for head in heads], firsts, firsts, [])
        texts = material.seen(fit.harmless)
        with bar("recording the base model's answers", len(texts)) as advance:
            harmless, answers = self.record_harmless(material, texts, advance)
        starts = self.beginnings(material, harmful, answers)
        return TaughtSeparation(
            self,
            material.settings,
            material.layers,
            harmful,
            harmless,
            self.base_distances(material),
            said[0],
            self.behind_starts(chat, harmful, harmless, starts),
            self.behind_suffixes(material, harmful, starts[0], answers),
            self.without_direction(material),
        )


@dataclass
class TaughtSeparation(Separation):
    """Separation whose harmful rows carry a refusal to be learnt."""

    holds: ClassVar[str] = "cross_entropy"

    def hold(
        self, chat: ChatModel, out: Forward, picked: Sequence[int], shift: int
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the refusal."""
        rows = [self.harmful.rows[i] for i in picked]
        begins = [self.harmful.firsts[i] + 1 for i in picked]
        return read_responses(chat, out, rows, begins, shift).cross_entropy(self.terms.kl_first)[0]
