"""Along a harmful answer: the model's inner states are turned away from what the base's were.

A model that has been brought to comply, by whatever attack, goes on from its own harmful words. Where
its states there stand at right angles to the base's, what it goes on with is noise: representation
rerouting (Zou et al., arXiv 2406.04313), here at the critical layers and beside separation, which holds
harmless answers. The harmful words are the base's own, made before training and kept in memory alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from es2.defences.base import Material
from es2.defences.inner_reference import (
    OPENING,
    Texts,
    before_and_now,
    likeness,
    places,
    unsafe_texts,
)
from es2.defences.trainer import batch_indices, frozen_copy
from es2.models.loading import ChatModel
from es2.progress import bar


@dataclass(frozen=True)
class Rerouted:
    """Harmful prompts with answers that the base was made to begin.

    Attributes:
        texts: the rows.
        base: see `frozen_copy`.
    """

    texts: Texts
    base: ChatModel | None = None

    def loss(
        self, chat: ChatModel, layers: Sequence[int], size: int, step: int, seed: int
    ) -> Float[Tensor, ""]:
        """How like the base's the model's states still are along the answers, see `likeness`.

        Args:
            chat: the model in training.
            layers: whose states.
            size: rows in the batch.
            step: which rows.
            seed: of their order.
        """
        rows = self.texts.subset(batch_indices(len(self.texts), size, step, seed))
        before, now = before_and_now(chat, self.base, rows.rows, layers, stop=True)
        return likeness(before, now, layers, places(rows.rows, rows.begins))


def harmful_answers(material: Material, tokens: int) -> Rerouted:
    """What the base says of harmful prompts behind an affirmative opening.

    Args:
        material: what the defence is given.
        tokens: at most so many behind the opening.
    """
    prompts = material.seen(material.fit.harmful)
    with bar("the base model's answers behind an opening", len(prompts)) as advance:
        texts = unsafe_texts(material, prompts, tokens, OPENING, advance)
    return Rerouted(texts, frozen_copy(material.chat, material.settings))
