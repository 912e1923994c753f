"""Along a harmful answer: the model's states leave the base's, and with them what they mean.

A model that has been brought to comply, by whatever attack, goes on from its own harmful words. Where
its states along such words are far from those that the base had, it has nothing to go on with: the
answer falls apart. This is the idea of representation bending (Yousefpour et al., arXiv 2504.01550) at
ES2's critical layers and with its cap: beyond that, distance costs more than it brings. Harmless
answers of the same length are held by KL. The harmful words are the base's own, made before training
and kept in memory alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.target import AFFIRMATION
from es2.defences.base import Material
from es2.defences.inner_reference import Texts, places, unsafe_texts
from es2.defences.reference import Reference, kl_from
from es2.defences.trainer import batch_indices
from es2.models.forward import forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel
from es2.progress import bar


@dataclass(frozen=True)
class Reading:
    """What a model in training does along a step's answers.

    Attributes:
        left: how far states along harmful answers are from the base's, at each critical layer: the
            mean L2 distance over the base's mean L2 norm there.
        kl: from the base, along harmless answers.
    """

    left: Mapping[int, Float[Tensor, ""]]
    kl: Float[Tensor, ""]


@dataclass(frozen=True)
class Bent:
    """Harmful prompts with answers that the base was made to begin, and harmless ones with its own.

    Attributes:
        texts: harmful rows; a response begins behind the opening.
        states: the base's along each response, at each critical layer.
        norms: their mean L2 norm at each critical layer.
        harmless: what the base does along its answers.
    """

    texts: Texts
    states: Sequence[Mapping[int, Float[Tensor, "_ d"]]]
    norms: Mapping[int, float]
    harmless: Reference

    def read(self, chat: ChatModel, size: int, step: int, seed: int) -> Reading:
        """One forward pass over both kinds of answers.

        Args:
            chat: the model in training.
            size: rows of each kind in the batch.
            step: which rows.
            seed: of their order.
        """
        bad = batch_indices(len(self.texts), size, step, seed)
        good = batch_indices(len(self.harmless), size, step, seed + 1)
        rows = self.texts.subset(bad)
        whole = rows.rows + [self.harmless.rows[i] for i in good]
        keep = min(*rows.begins, *(self.harmless.starts[i] for i in good))
        out = forward(chat, whole, list(self.norms), keep=keep)
        where, left = places(rows.rows, rows.begins), {}
        for layer, norm in self.norms.items():
            then = torch.cat([self.states[i][layer] for i in bad])
            left[layer] = (where.of(out, out.states[layer]) - then).norm(dim=-1).mean() / norm
        return Reading(left, kl_from(self.harmless, good, chat, out, len(bad), 1.0))


def record_answers(material: Material, harmless: Reference, tokens: int) -> Bent:
    """What the base says of harmful prompts behind an affirmative opening, beside harmless answers.

    Args:
        material: what the defence is given.
        harmless: what the base does along answers as long.
        tokens: at most so many of a harmful answer, behind its opening.
    """
    chat, prompts = material.chat, material.seen(material.fit.harmful)
    with bar("the base model's answers behind an opening", len(prompts)) as advance:
        texts = unsafe_texts(material, prompts, tokens, AFFIRMATION, advance)
    opened = len(chat.template.encode_response(AFFIRMATION))
    # An answer that ends with its opening still has that opening's last token.
    begins = [
        min(begin + opened, len(row) - 1)
        for row, begin in zip(texts.rows, texts.begins, strict=True)
    ]
    behind = Texts(texts.rows, begins)
    states = answer_states(chat, behind, material.layers)
    norms = {
        layer: float(torch.cat([own[layer] for own in states]).norm(dim=-1).mean())
        for layer in material.layers
    }
    return Bent(behind, states, norms, harmless)


@torch.no_grad()
def answer_states(
    chat: ChatModel, texts: Texts, layers: Sequence[int]
) -> list[dict[int, Float[Tensor, "_ d"]]]:
    """The states at some layers along each response, in float32."""

    def run(batch: list[int]) -> list[dict[int, Float[Tensor, "_ d"]]]:
        own = texts.subset(batch)
        out = forward(chat, own.rows, layers, stop=True, keep=min(own.begins))
        each = [places([own.rows[i]], [own.begins[i]], i) for i in range(len(own))]
        return [
            {layer: where.of(out, states) for layer, states in out.states.items()} for where in each
        ]

    return in_batches(chat, texts.rows, run)
