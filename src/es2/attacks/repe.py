"""RepE: representation engineering, the concept of harm read as a direction and subtracted.

Source: Zou et al., "Representation Engineering" (arXiv 2310.01405): the differences of contrast pairs'
last-token embeddings, their first principal component as the reading vector of a layer, its sign by
the labels; the vector, times a strength, is added to the residual stream at every token.
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
from es2.attacks.target import AFFIRMATION, affirmation_loss
from es2.data.fitting import spread
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.activations import Edit
from es2.models.generation import generate
from es2.models.work import Lengths, Work, answering, reading
from es2.separation.probe import ClassStates, fit_probes

Reading = Literal["pca", "mean", "probe"]


@dataclass(frozen=True)
class ReadingVector:
    """Where harm lies at one layer.

    Attributes:
        direction: unit vector [d], towards harmful.
        norm: mean L2 norm of the residual stream there, the unit of strength.
    """

    direction: Float[Tensor, "d"]
    norm: float


def principal(differences: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """First principal component of contrast pairs' differences, up to its sign.

    Every other pair is taken the other way round, as in the source, so that what all pairs have in
    common is variance and not the mean that principal components leave out.
    """
    signs = torch.tensor([1.0, -1.0]).repeat(len(differences) // 2 + 1)[: len(differences)]
    turned = differences.float() * signs[:, None].to(differences.device)
    return torch.linalg.svd(turned - turned.mean(0), full_matrices=False)[2][0]


def reading_vectors(
    states: ClassStates, reading: Reading, seed: int = 0
) -> dict[int, ReadingVector]:
    """Each layer's reading vector, keyed by the 1-based layer; its sign is set by the labels."""
    probes = fit_probes(states, seed) if reading == "probe" else {}
    pairs = min(len(states.harmful), len(states.harmless))
    found = {}
    for layer in range(1, states.harmful.shape[1] + 1):
        bad, good = states.harmful[:, layer - 1], states.harmless[:, layer - 1]
        between = bad.mean(0) - good.mean(0)
        if reading == "pca":
            way = principal(bad[:pairs] - good[:pairs])
        else:
            way = probes[layer].w if reading == "probe" else between
        way = way / way.norm()
        norm = float(torch.cat([bad, good]).norm(dim=-1).mean())
        found[layer] = ReadingVector(way if way @ between >= 0 else -way, norm)
    return found


def steering(vectors: Mapping[int, ReadingVector], strength: float) -> dict[int, Edit]:
    """Moves every token away from harmful, by a share of the residual norm at each layer."""

    def at_layer(vector: ReadingVector) -> Edit:
        step = strength * vector.norm * vector.direction

        def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
            return stream - step.to(stream.device, stream.dtype)

        return change

    return {layer: at_layer(vector) for layer, vector in vectors.items()}


@ATTACKS.register
@dataclass(frozen=True)
class RepE:
    """Steers towards harmless over a range of layers.

    The range is chosen for every strength, and the strength marked that is best, by how likely an
    affirmation is on validation prompts. All strengths are reported.

    Attributes:
        reading: how a direction is read: `pca` (published), mean difference, or a probe's weights.
        strengths: in units of the residual stream's mean norm at a layer.
        ranges: layers to choose among, as shares of the depth.
        fit: contrast pairs at most.
        validation: harmful validation prompts to choose by.
        max_new_tokens: length of the answer.
        seed: of the probes' fit.
    """

    name: ClassVar[str] = "repe"
    threat: ClassVar[ThreatModel] = "residual stream"
    published: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {"fit": 2, "validation": 1, "max_new_tokens": 1}
    reading: Reading = "pca"
    strengths: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    ranges: tuple[tuple[float, float], ...] = ((0.25, 0.5), (0.5, 0.75), (0.25, 0.75), (0.5, 1.0))
    fit: int = 140
    validation: int = 32
    max_new_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for low, high in self.ranges:
            if not 0 <= low < high <= 1:
                raise Es2Error(
                    f"repe: a range of layers from {low} to {high} of the depth; give shares from 0 "
                    "to 1, the lower first"
                )

    def settings(self) -> Sequence[str]:
        """One for each strength."""
        return [f"strength={strength:g}" for strength in self.strengths]

    def expected(self, lengths: Lengths, prompts: int, rows: int) -> Work:
        """The choice of the range for every strength, then the answers."""
        affirmed = lengths.own + lengths.count(AFFIRMATION) - 1
        tried = reading(self.validation, affirmed, rows, lengths.head)
        answers = answering(prompts, lengths.own, self.max_new_tokens, rows, lengths.head)
        return tried.times(len(self.strengths) * len(self.ranges)) + answers.times(
            len(self.strengths)
        )

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Reads the vectors, chooses ranges, then answers every prompt under each strength."""
        if set(self.settings()) <= set(skip):
            return
        chat = victim.chat
        vectors = reading_vectors(victim.states.fitted_on(self.fit), self.reading, self.seed)
        held = spread(victim.fit.held_harmful, self.validation)
        heads = [victim.known.template.encode(prompt) for prompt in held]
        progress(0, "choosing layers")
        with metered(victim.known) as choosing:
            losses = {
                (strength, chosen): affirmation_loss(
                    victim.known, heads, steering(within(vectors, chosen), strength)
                )
                for strength in self.strengths
                for chosen in self.ranges
            }
        best = min(losses, key=lambda pair: losses[pair])
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        for strength, setting in zip(self.strengths, self.settings(), strict=True):
            if setting in skip:
                continue
            chosen = min(self.ranges, key=lambda pair: losses[strength, pair])
            layers = within(vectors, chosen)
            with metered(chat) as spent:
                answers = generate(
                    chat,
                    rows,
                    self.max_new_tokens,
                    steering(layers, strength),
                    progress=progress,
                    keep=chat.template.head,
                )
            budget = (spent + choosing).among(len(prompts))
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    budget,
                    seed=self.seed,
                    norm=strength * sum(v.norm for v in layers.values()) / len(layers),
                    relative_norm=strength,
                    rule="validation" if strength == best[0] else "sweep",
                    details={"layers": sorted(layers), "loss": losses[strength, chosen]},
                )
                for prompt, answer in zip(prompts, answers, strict=True)
            ]


def within(
    vectors: Mapping[int, ReadingVector], shares: tuple[float, float]
) -> dict[int, ReadingVector]:
    """The vectors of the layers in a range of shares of the depth, one at the least."""
    depth = max(vectors)
    first, last = (max(1, round(share * depth)) for share in shares)
    return {layer: vectors[layer] for layer in range(first, last + 1)}
