"""Along a harmful answer: the model's inner states are pulled to one random vector.

A model that has been brought to comply, by whatever attack, goes on from its own harmful words. Where
its states behind them say nothing, what it goes on with is noise. The pull is that of representation
misdirection for unlearning (RMU; Li et al., "The WMDP Benchmark", arXiv 2403.03218), at the first
critical layer; beside it stand separation and the KL that hold harmless answers. The harmful words are
the base's own, made before training and kept in memory alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.defences.base import Material
from es2.defences.inner_reference import OPENING, Texts, places, unsafe_texts
from es2.defences.trainer import batch_indices, seeded
from es2.models.forward import forward
from es2.models.loading import ChatModel
from es2.progress import bar


@dataclass(frozen=True)
class Scrambled:
    """Harmful prompts with answers that the base was made to begin, and what their states are to be.

    Attributes:
        texts: the rows; a response begins behind the opening.
        layer: whose states are pulled.
        goal: where to: a random vector, as long as states of harmful prompts are on average.
    """

    texts: Texts
    layer: int
    goal: Float[Tensor, "d"]

    def loss(self, chat: ChatModel, size: int, step: int, seed: int) -> Float[Tensor, ""]:
        """Mean squared distance of states from the goal, over the goal's squared length.

        Args:
            chat: the model in training.
            size: rows in the batch.
            step: which rows.
            seed: of their order.
        """
        rows = self.texts.subset(batch_indices(len(self.texts), size, step, seed))
        now = answer_states(chat, rows, self.layer)
        goal = self.goal.to(now.device)
        return (now - goal).square().sum(-1).mean() / goal.square().sum()


def answer_states(chat: ChatModel, rows: Texts, layer: int) -> Float[Tensor, "n d"]:
    """The states at a layer at all tokens of the responses; blocks above it are not run."""
    out = forward(chat, rows.rows, (layer,), stop=True, keep=chat.template.head)
    return places(rows.rows, rows.begins).of(out, out.states[layer])


def harmful_answers(material: Material, tokens: int) -> Scrambled:
    """What the base says of harmful prompts behind an affirmative opening, and a goal for its states.

    Args:
        material: what the defence is given.
        tokens: at most so many behind the opening.
    """
    chat, layer = material.chat, min(material.layers)
    prompts = material.seen(material.fit.harmful)
    with bar("the base model's answers behind an opening", len(prompts)) as advance:
        texts = unsafe_texts(material, prompts, tokens, OPENING, advance)
    opened = len(chat.template.encode_response(OPENING))
    behind = Texts(texts.rows, [begin + opened for begin in texts.begins])
    states = material.states.harmful[:, layer - 1]
    way = torch.randn(states.shape[1], generator=seeded(material.settings.seed, layer))
    return Scrambled(behind, layer, states.norm(dim=-1).mean().cpu() * way / way.norm())
