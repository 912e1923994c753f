"""SCAV: safety concept activation vectors, an attack on the residual stream.

Source: Xu et al., "Uncovering Safety Risks of Large Language Models through Concept Activation
Vector" (arXiv 2404.12038). A linear probe a layer says how harmful the model finds what it reads;
the attack moves the stream by the least amount that makes the probe say P0 (eq. 3), at every layer
whose probe is accurate, for the prompt's last token and every generated one. A layer sees a stream
that the layers below have already changed.

The probes are fitted on a block's output and applied to a block's output.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

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
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.activations import Edit
from es2.models.generation import generate
from es2.separation.probe import ClassStates, Probe, fit_probes


def perturb(
    states: Float[Tensor, "n d"], probe: Probe, p0: float, bound: float | None = None
) -> Float[Tensor, "n d"]:
    """Moves states along the probe's normal until it says P0; leaves those already below it.

    Closed form: e' = e + epsilon v with v = w / |w| and epsilon = (logit(P0) - b - w.e) / |w|,
    where P(e) > P0 (SCAV, eq. 3-4).

    Args:
        states: the residual stream.
        probe: of the layer.
        p0: the probability to reach.
        bound: no state is moved by more than this share of its own norm.
    """
    w = probe.w.to(states.device)
    gap = math.log(p0 / (1 - p0)) - probe.logit(states)
    step = gap.clamp(max=0.0) / w.dot(w)
    if bound is not None:
        step = step.maximum(-bound * states.float().norm(dim=-1) / w.norm())
    return (states.float() + step[:, None] * w).to(states.dtype)


@dataclass
class Meter:
    """Adds up how far an attack moved the stream."""

    moved: float = 0.0
    relative: float = 0.0
    count: int = 0

    def add(self, before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> None:
        """Counts the vectors that were moved."""
        norms = (after.float() - before.float()).norm(dim=-1)
        touched = norms > 0
        self.moved += float(norms.sum())
        self.relative += float((norms / before.float().norm(dim=-1)).sum())
        self.count += int(touched.sum())

    def means(self) -> tuple[float, float]:
        """Mean L2 norm of the perturbation, absolute and relative to what it perturbed."""
        count = max(1, self.count)
        return self.moved / count, self.relative / count


def scav_edits(
    probes: Mapping[int, Probe], p0: float, meter: Meter, bound: float | None = None
) -> dict[int, Edit]:
    """The attack as edits of the residual stream, last token of each row."""

    def at_layer(probe: Probe) -> Edit:
        def change(stream: Float[Tensor, "batch seq d"]) -> Float[Tensor, "batch seq d"]:
            changed = stream.clone()
            changed[:, -1] = perturb(stream[:, -1], probe, p0, bound)
            meter.add(stream[:, -1], changed[:, -1])
            return changed

        return change

    return {layer: at_layer(probe) for layer, probe in probes.items()}


@ATTACKS.register
@dataclass(frozen=True)
class Scav:
    """Settings as published, and the sweep an attacker would make.

    Attributes:
        p0: target probabilities to try. Published: 1e-4 (paper), 1e-3 (code). How far
            these move a state hangs on the probe's steepness, so the sweep goes on.
        fit: probes are fitted on at most so many prompts of each class. Published: 140. More need
            not make a stronger attack.
        min_accuracy: only layers whose probe is more accurate than this on held-out prompts.
        bound: the most that a layer's state is moved, as a share of its norm; null (published) for
            as far as P0 takes.
        max_new_tokens: length of the answer.
        seed: of the probes' fit.
    """

    name: ClassVar[str] = "scav"
    threat: ClassVar[ThreatModel] = "residual stream"
    least: ClassVar[Mapping[str, float]] = {"fit": 2, "min_accuracy": 0, "max_new_tokens": 1}
    p0: tuple[float, ...] = (0.05, 0.01, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-13)
    fit: int = 140
    min_accuracy: float = 0.9
    bound: float | None = None
    max_new_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for p0 in self.p0:
            if not 0 < p0 < 1:
                raise Es2Error(f"scav: p0 is {p0:g}, but has to lie between 0 and 1")
        if self.bound is not None and not self.bound > 0:
            raise Es2Error(f"scav: bound is {self.bound}, but has to be above 0")

    @property
    def published(self) -> tuple[str, ...]:
        """The paper's P0 and the code's, whichever layers pass the gate."""
        return ("p0=0.001", "p0=0.0001") if as_given(self, "p0", "min_accuracy") else ()

    def settings(self) -> Sequence[str]:
        """One for each P0."""
        return [f"p0={p0:g}" for p0 in self.p0]

    def probes(self, states: ClassStates) -> dict[int, Probe]:
        """Probes fitted on the model under attack, at the layers that pass the gate.

        Raises:
            Es2Error: if no layer does.
        """
        probes = fit_probes(states.fitted_on(self.fit), self.seed)
        gated = {layer: p for layer, p in probes.items() if p.accuracy > self.min_accuracy}
        if not gated:
            best = max(probe.accuracy for probe in probes.values())
            raise Es2Error(
                f"scav: no layer's probe is more accurate than {self.min_accuracy} on held-out "
                f"prompts (the best: {best:.2f}); give more prompts to fit on or lower min_accuracy"
            )
        return gated

    def run(
        self,
        victim: Victim,
        prompts: Sequence[Prompt],
        skip: Collection[str] = (),
        progress: Report = silent,
    ) -> Iterator[list[Attempt]]:
        """Refits the probes, then answers every prompt under each P0."""
        wanted = [(p0, s) for p0, s in zip(self.p0, self.settings(), strict=True) if s not in skip]
        if not wanted:
            return
        chat, probes = victim.chat, self.probes(victim.states)
        rows = [chat.template.encode(prompt.text) for prompt in prompts]
        for p0, setting in wanted:
            meter = Meter()
            edits = scav_edits(probes, p0, meter, self.bound)
            with metered(chat) as spent:
                answers = generate(chat, rows, self.max_new_tokens, edits, progress=progress)
            norm, relative = meter.means()
            yield [
                Attempt.of(
                    self,
                    setting,
                    prompt,
                    chat.template.decode(answer),
                    spent.among(len(prompts)),
                    seed=self.seed,
                    norm=norm,
                    relative_norm=relative,
                    details={"p0": p0, "layers": sorted(probes)},
                )
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
