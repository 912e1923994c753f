"""Refusal without its direction: it is kept where an attack has taken out what tells it.

Refusal ablation takes one direction out of the whole model, that between the classes' centres at some
layer. So harmful rows are read with the line between the centres of some prompts taken out everywhere,
which is always that of the model as it stands, and are to refuse all the same: refusal feature
adversarial training (Yu et al., arXiv 2409.20089). At most layers nothing happens to a model whose
line is taken out, and nothing is learnt from it. It happens from about the layer where the classes
come apart, and stays there while the model is trained. So the layers are chosen before training, by
the attack's own rule; all that would serve it about as well, since a model is attacked at whichever
it has learnt least of. For the same reason a few of them are tried, by that rule again, and the line
is taken out that serves the attack best. The centres of a batch are not those that an attack finds; so
more prompts are read for them than a batch has, and that in every other step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.refusal_ablation import RefusalAblation, ablation_edits, between
from es2.attacks.target import AFFIRMATION, affirmation_loss
from es2.models.forward import Forward, forward
from es2.models.loading import ChatModel
from es2.models.work import Lengths, Work, reading, training
from es2.progress import bar
from es2.separation.probe import ClassStates, last_states

ATTACK = RefusalAblation()
"""Whose rule those are chosen by."""

_DEPTH = 32
"""Of the model whose work is expected."""

CENTRE = 32
"""Prompts of each class whose centres a line is between."""

EVERY = 2
"""Steps from one line to the next."""

TRIED = 3
"""Lines, of which the one is taken out that serves an attack best."""


@dataclass(frozen=True)
class Ablated:
    """The layers at which a line is read that is to be taken out.

    Attributes:
        layers: 1-based.
    """

    layers: Sequence[int]

    def read(
        self,
        chat: ChatModel,
        rows: Sequence[Sequence[int]],
        heads: Sequence[Sequence[int]],
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        seed: torch.Generator,
    ) -> Forward:
        """Rows with the line between two classes of prompts taken out of all their own tokens.

        Args:
            chat: the model in training.
            rows: templated prompts with their responses.
            heads: the same without responses.
            harmful: templated prompts whose centre is one end of the line.
            harmless: the other.
            seed: of the layers at which lines are read.
        """
        drawn = torch.randperm(len(self.layers), generator=seed)[:TRIED].tolist()
        ways = lines(chat, harmful, harmless, [self.layers[place] for place in drawn])
        removals = [ablation_edits(chat.depth, way) for way in ways]
        worst = min(removals, key=lambda edits: affirmation_loss(chat, heads, edits))
        return forward(chat, rows, keep=chat.template.head, edits=worst)


def lines(
    chat: ChatModel,
    harmful: Sequence[Sequence[int]],
    harmless: Sequence[Sequence[int]],
    layers: Sequence[int],
) -> list[Float[Tensor, "d"]]:
    """The directions from the harmless to the harmful centre at layers, as the attack reads them.

    Args:
        chat: the model.
        harmful: templated prompts, read at their last tokens.
        harmless: the same.
        layers: 1-based.
    """
    states = last_states(chat, [*harmful, *harmless], layers).to(chat.device)
    bad, good = states.split([len(harmful), len(harmless)])
    return [between(bad[:, place], good[:, place]) for place in range(len(layers))]


def lines_at(chat: ChatModel, states: ClassStates, held: Sequence[str]) -> Sequence[int]:
    """The layers without whose lines the model is likeliest to comply, in ascending order.

    Those are the ones whose loss by the attack's rule is nearer to the least than to the most.

    Args:
        chat: the model before it is trained.
        states: its embeddings of prompts of both classes.
        held: harmful validation prompts.
    """
    places = len(ATTACK.layers(chat.depth))
    with bar("choosing the layers of refusal's direction", places) as done:
        losses = ATTACK.losses(chat, states, held, done)
    middle = (min(losses.values()) + max(losses.values())) / 2
    return [layer for layer, loss in losses.items() if loss <= middle]


def expected_ablated(
    steps: int, lengths: Lengths, harmful: int, fitted: int, rows: int, response: int
) -> Work:
    """The choice of layers, then some lines and the batch's harmful rows in every other step.

    Args:
        steps: of training.
        lengths: of the prompts, in tokens.
        harmful: of the batch.
        fitted: harmful prompts to fit on; those held out are no more.
        rows: of a batch without gradient.
        response: length of a refusal.
    """
    times = (steps + EVERY - 1) // EVERY
    affirmed = lengths.own + lengths.count(AFFIRMATION)
    asked = min(ATTACK.validation, fitted)
    work = reading(asked, affirmed, rows, lengths.head).times(len(ATTACK.layers(_DEPTH)))
    work += reading(times * 2 * CENTRE, lengths.own, rows, lengths.head)
    work += reading(harmful, affirmed, rows, lengths.head).times(times * TRIED)
    row = lengths.own + response
    return work + training(times, harmful, row, harmful * (response + 1), lengths.head)
