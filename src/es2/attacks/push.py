"""Push: the residual stream moved by a given share of its norm, whatever that does.

Attacks on embeddings search for the perturbation that makes a model comply. This one sweeps its size
instead, along the same directions, so as to tell two sizes apart: the one at which safety breaks and
the one at which meaning does (the semantic collapse that ES2 is after, arXiv 2603.20206). As SCAV
does, it touches the prompt's last token and every generated one, at every layer whose probe is
accurate; unlike SCAV, it moves each of them by the same share of its norm, far enough or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from es2.attacks.base import ATTACKS, Attempt, Report, ThreatModel, Victim, silent
from es2.attacks.budget import metered
from es2.attacks.repe import reading_vectors
from es2.attacks.scav import Scav
from es2.data.sources import Prompt
from es2.models.activations import Edit
from es2.models.generation import generate
from es2.separation.probe import ClassStates, Probe

Direction = Literal["scav", "repe", "random"]


def push(
    states: Float[Tensor, "n d"], way: Float[Tensor, "d"], norm: float
) -> Float[Tensor, "n d"]:
    """Moves each state by `norm` times its own L2 norm along a unit vector."""
    step = norm * states.float().norm(dim=-1, keepdim=True) * way.to(states.device)
    return (states.float() + step).to(states.dtype)


def pushing(ways: Mapping[int, Float[Tensor, "d"]], norm: float) -> dict[int, Edit]:
    """The push as edits of the residual stream, last token of each row."""

    def at_layer(way: Float[Tensor, "d"]) -> Edit:
        def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
            changed = stream.clone()
            changed[:, -1] = push(stream[:, -1], way, norm)
            return changed

        return change

    return {layer: at_layer(way) for layer, way in ways.items()}


def unit_directions(
    direction: Direction, probes: Mapping[int, Probe], states: ClassStates, seed: int
) -> dict[int, Float[Tensor, "d"]]:
    """Unit vectors away from harmful, one for each layer that has a probe.

    Args:
        direction: `scav`, the normal of the layer's probe; `repe`, its reading vector; `random`,
            drawn for each layer, to tell how much is the direction and how much the size.
        probes: by layer.
        states: embeddings that reading vectors are taken from.
        seed: of what is drawn.
    """
    if direction == "scav":
        return {layer: -probe.w / probe.w.norm() for layer, probe in probes.items()}
    if direction == "repe":
        vectors = reading_vectors(states, "pca", seed)
        return {layer: -vectors[layer].direction for layer in probes}
    random = torch.Generator().manual_seed(seed)
    found = {}
    for layer, probe in probes.items():
        way = torch.randn(len(probe.w), generator=random).to(probe.w.device)
        found[layer] = way / way.norm()
    return found


@ATTACKS.register
@dataclass(frozen=True)
class Push:
    """Pushes the stream by growing shares of its norm, along SCAV's, RepE's and random directions.

    Attributes:
        directions: any of `scav`, `repe`, `random`.
        norms: sizes of the perturbation at each layer, as shares of the state's norm.
        fit: directions are fitted on at most so many prompts of each class.
        min_accuracy: only layers whose probe is more accurate than this on held-out prompts.
        max_new_tokens: length of the answer.
        seed: of the probes' fit and of random directions.
    """

    name: ClassVar[str] = "push"
    threat: ClassVar[ThreatModel] = "residual stream"
    published: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {
        "norms": 1e-6,
        "fit": 2,
        "min_accuracy": 0,
        "max_new_tokens": 1,
    }
    directions: tuple[Direction, ...] = ("scav", "repe", "random")
    norms: tuple[float, ...] = (0.01, 0.014, 0.02, 0.028, 0.04, 0.056, 0.08, 0.32)
    fit: int = 140
    min_accuracy: float = 0.9
    max_new_tokens: int = 32
    seed: int = 0

    def settings(self) -> Sequence[str]:
        """No push, then one for each direction and size."""
        return ["none=0", *(f"{way}={norm:g}" for way in self.directions for norm in self.norms)]

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Refits the directions, then answers every prompt under every push."""
        if set(self.settings()) <= set(skip):
            return
        chat, states = victim.chat, victim.states.fitted_on(self.fit)
        probes = Scav(fit=self.fit, min_accuracy=self.min_accuracy, seed=self.seed).probes(states)
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        planned: list[tuple[str, float, dict[int, Tensor]]] = [("none", 0.0, {})]
        for direction in self.directions:
            ways = unit_directions(direction, probes, states, self.seed)
            planned += [(direction, norm, ways) for norm in self.norms]
        for way, norm, ways in planned:
            setting = f"{way}={norm:g}"
            if setting in skip:
                continue
            with metered(chat) as spent:
                answers = generate(
                    chat, rows, self.max_new_tokens, pushing(ways, norm), progress=progress
                )
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    spent.among(len(prompts)),
                    seed=self.seed,
                    relative_norm=norm,
                    details={"direction": way, "layers": sorted(probes)},
                )
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
