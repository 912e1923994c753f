"""Choosing the two critical layers: semantic emergence, and the terminal layer.

Source: arXiv 2603.20206 targets exactly two layers: the one where harmful and harmless become
linearly separable, and the last. How the paper picks the first is not known to us; the rule here is
stated, and every layer's numbers are recorded beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from es2.errors import Es2Error
from es2.separation.distance import geometry
from es2.separation.probe import ClassStates, cross_validated, fit_probes


@dataclass(frozen=True)
class LayerRow:
    """One layer's numbers.

    Attributes:
        layer: 1-based.
        accuracy: of probes, cross-validated over all prompts.
        margin: mean signed distance of held-out prompts to the probe's plane, over the spread.
        distance: mean L2 distance of harmful-harmless pairs.
        spread: within-class root mean squared distance to the class mean.
        separation: distance over spread.
        norm: mean L2 norm.
        cosine: mean cosine of harmful-harmless pairs.
    """

    layer: int
    accuracy: float
    margin: float
    distance: float
    spread: float
    separation: float
    norm: float
    cosine: float


@dataclass(frozen=True)
class Chosen:
    """The critical layers, 1-based and in order, and why these."""

    layers: tuple[int, ...]
    why: str

    def record(self) -> dict[str, Any]:
        """For `layers.json`."""
        return {
            "layers": list(self.layers),
            "emergence": self.layers[0],
            "terminal": self.layers[-1],
            "why": self.why,
        }


def survey(states: ClassStates, seed: int = 0) -> list[LayerRow]:
    """Every layer's probes and geometry; geometry on the prompts that probes are fitted on."""
    rows = []
    harmful = torch.cat([states.harmful, states.held_harmful])
    harmless = torch.cat([states.harmless, states.held_harmless])
    for layer, probe in fit_probes(states, seed).items():
        shape = geometry(states.harmful[:, layer - 1], states.harmless[:, layer - 1])
        sides = torch.cat(
            [
                probe.logit(states.held_harmful[:, layer - 1]),
                -probe.logit(states.held_harmless[:, layer - 1]),
            ]
        )
        margin = float((sides / probe.w.norm()).mean()) / shape.spread
        accuracy = cross_validated(harmful[:, layer - 1], harmless[:, layer - 1], seed)
        fields = asdict(shape)
        rows.append(LayerRow(layer, accuracy, margin, separation=shape.separation, **fields))
    return rows


def choose(rows: Sequence[LayerRow]) -> Chosen:
    """The stated rule.

    Semantic emergence is the first layer whose cross-validated probe accuracy is nine tenths of the
    way from chance to the best layer's: most of what the model will know of harm is there, and noise
    in a few prompts does not move the choice.

    The terminal layer is the last block's output, before the final norm.
    """
    best = max(row.accuracy for row in rows)
    needed = min(best, 0.5 + 0.9 * (best - 0.5))
    first = next(row for row in rows if row.accuracy >= needed)
    last = rows[-1].layer
    emergence = max(1, min(first.layer, last - 1))
    before = "" if emergence == first.layer else f"the one before layer {first.layer}, "
    why = (
        f"layer {emergence}: {before}the first whose cross-validated probe accuracy "
        f"({first.accuracy:.3f}) is nine tenths of the way from chance to the best layer's "
        f"({best:.3f}); layer {last}: the last block's output, before the final norm"
    )
    return Chosen((emergence, last), why)


def given(layers: Sequence[int], depth: int) -> Chosen:
    """The user's critical layers.

    Raises:
        Es2Error: if a layer is not one of 1 to `depth`.
    """
    check_layers(layers, depth)
    return Chosen(tuple(sorted(set(layers))), "given by the user")


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers as a user writes them, such as `15,29`; in order, each once.

    Raises:
        Es2Error: if one is not a number.
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise Es2Error(f"--layers {text!r}: give layer numbers, such as 15,30") from None


def check_layers(layers: Sequence[int], depth: int) -> None:
    """Raises an Es2Error if a layer is not one of 1 to `depth`."""
    if not layers:
        raise Es2Error(f"no critical layers given; there are 1 to {depth}")
    if wrong := [layer for layer in layers if not 1 <= layer <= depth]:
        raise Es2Error(f"layer {wrong[0]} is out of range; the model has layers 1 to {depth}")
