"""Refusal ablation: the direction that tells refusal is projected out of the model ("abliteration").

Source: Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv
2406.11717): the difference of the classes' mean embeddings at one layer, the layer chosen on
validation prompts, removed from the residual stream after the embeddings and every block, or from the
weights by which blocks write to it. What is removed less than there is in docs/attacks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from es2.attacks.base import (
    ATTACKS,
    Attempt,
    Report,
    ThreatModel,
    Victim,
    as_given,
    silent,
)
from es2.attacks.budget import metered
from es2.attacks.target import affirmation_loss
from es2.attacks.weights import restored
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.activations import Edit
from es2.models.generation import generate
from es2.models.loading import ChatModel
from es2.separation.probe import ClassStates

Where = Literal["activations", "weights"]

_WRITERS = {
    "o_proj",
    "down_proj",
    "out_proj",
    "c_proj",
    "dense",
    "dense_4h_to_h",
    "fc2",
    "wo",
    "w2",
}
"""What families call the linear maps that write to the residual stream."""


def mean_difference(states: ClassStates, layer: int) -> Float[Tensor, "d"]:
    """The unit vector from the harmless to the harmful centre at a layer, see `between`."""
    return between(states.harmful[:, layer - 1], states.harmless[:, layer - 1])


def between(harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]) -> Float[Tensor, "d"]:
    """The unit vector from the harmless to the harmful centre; zero where they are one."""
    return normalize(harmful.mean(0) - harmless.mean(0), dim=0)


def without(
    states: Float[Tensor, "*batch d"], direction: Float[Tensor, "d"]
) -> Float[Tensor, "*batch d"]:
    """States with their component along a unit vector removed."""
    way = direction.to(states.device)
    plain = states.float()
    return (plain - (plain @ way)[..., None] * way).to(states.dtype)


def ablation_edits(depth: int, direction: Float[Tensor, "d"]) -> dict[int, Edit]:
    """The direction removed from the embeddings and after every block."""
    return dict.fromkeys(range(depth + 1), lambda stream: without(stream, direction))


@contextmanager
def ablated_weights(chat: ChatModel, direction: Float[Tensor, "d"]) -> Iterator[None]:
    """Within the context no block of the model can write along the direction.

    Raises:
        Es2Error: if the maps that write to the stream cannot be told in some block.
    """
    writers: list[nn.Linear] = []
    for block in chat.blocks:
        found = [
            module
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _WRITERS
        ]
        # Routed experts that are one tensor, [experts, in, out], are no linear maps of their own.
        fused = any("experts" in name and p.ndim > 2 for name, p in block.named_parameters())
        if len(found) < 2 or fused:
            raise Es2Error(
                f"{chat.name}: refusal_ablation does not know which of a block's weights write to "
                "the residual stream; use where=activations"
            )
        writers += found
    with restored([writer.weight for writer in writers]):
        for writer in writers:
            writer.weight.copy_(without(writer.weight.T, direction).T)
        yield


@ATTACKS.register
@dataclass(frozen=True)
class RefusalAblation:
    """Removes one direction from all layers.

    The layer that the direction is read at is the one whose removal makes an affirmation likeliest
    on validation prompts.

    Attributes:
        where: what it is removed from; the attacker may try both.
        lowest: the first layer to read a direction at, as a share of the depth.
        highest: the last. Published: below 0.8.
        validation: harmful validation prompts to choose the layer by.
        max_new_tokens: length of the answer.
    """

    name: ClassVar[str] = "refusal_ablation"
    threat: ClassVar[ThreatModel] = "weights"
    least: ClassVar[Mapping[str, float]] = {"validation": 1, "max_new_tokens": 1}
    where: tuple[Where, ...] = ("activations", "weights")
    lowest: float = 0.2
    highest: float = 0.8
    validation: int = 32
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 1:
            raise Es2Error(
                f"refusal_ablation: layers from {self.lowest} to {self.highest} of the depth; give "
                "shares from 0 to 1, lowest first"
            )

    @property
    def published(self) -> tuple[str, ...]:
        """Taken out of activations."""
        return ("activations",) if as_given(self, "where") else ()

    def settings(self) -> Sequence[str]:
        """One for each place."""
        return list(self.where)

    def layers(self, depth: int) -> Sequence[int]:
        """The layers that it chooses from, in a model of so many."""
        first, last = (max(1, round(share * depth)) for share in (self.lowest, self.highest))
        return range(first, last + 1)

    def losses(
        self,
        chat: ChatModel,
        states: ClassStates,
        held: Sequence[str],
        progress: Callable[[int], None] = lambda done: None,
    ) -> dict[int, float]:
        """What layers are chosen by: an affirmation's loss without each one's direction, in nats.

        Args:
            chat: the model.
            states: what the directions are read off.
            held: harmful validation prompts.
            progress: called with 1 after each layer.
        """
        heads = [chat.template.encode(prompt) for prompt in spread(held, self.validation)]
        losses = {}
        for layer in self.layers(chat.depth):
            edits = ablation_edits(chat.depth, mean_difference(states, layer))
            losses[layer] = affirmation_loss(chat, heads, edits)
            progress(1)
        return losses

    def choose(self, victim: Victim) -> tuple[int, Float[Tensor, "d"]]:
        """The layer and its direction."""
        losses = self.losses(victim.known, victim.states, victim.fit.held_harmful)
        best = min(losses, key=lambda layer: losses[layer])
        return best, mean_difference(victim.states, best)

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Chooses the direction, then answers every prompt without it."""
        wanted = [where for where in self.where if where not in skip]
        if not wanted:
            return
        chat = victim.chat
        progress(0, "choosing layers")
        with metered(victim.known) as choosing:
            layer, direction = self.choose(victim)
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        edits = ablation_edits(chat.depth, direction)
        for where in wanted:
            with metered(chat) as spent:
                if where == "activations":
                    answers = generate(
                        chat,
                        rows,
                        self.max_new_tokens,
                        edits,
                        progress=progress,
                        keep=chat.template.head,
                    )
                else:
                    with ablated_weights(chat, direction):
                        answers = generate(chat, rows, self.max_new_tokens, progress=progress)
            budget = (spent + choosing).among(len(prompts))
            yield [
                Attempt.of(
                    self,
                    where,
                    prompt,
                    chat.template.decode(answer),
                    budget,
                    rule="layer by validation",
                    details={"layer": float(layer)},
                )
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
