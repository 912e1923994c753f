"""How far apart two classes of embeddings lie: the distance term of ES2 and its remedies.

Source: "Enhancing Safety of Large Language Models via Embedding Space Separation" (arXiv
2603.20206). The paper's term is the mean L2 distance over all harmful-harmless pairs, negated. Raw
distance can be met by inflating norms, so distance is also offered relative to the base model's and
with a cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Form = Literal["raw", "relative", "centre"]


def pair_distance(
    harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]
) -> Float[Tensor, ""]:
    """Mean L2 distance over all n * m harmful-harmless pairs, in float32."""
    # The default mode multiplies matrices for large batches, and loses small distances between
    # embeddings that have large entries in common.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(harmful.float(), harmless.float(), compute_mode=mode).mean()


def centre_distance(
    harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]
) -> Float[Tensor, ""]:
    """L2 distance between the classes' means, in float32.

    Where the classes overlap, the distance of a pair is mostly within-class spread, and pushing
    pairs apart scatters both classes. Pushing the means apart moves each class as a whole.
    """
    return (harmful.float().mean(0) - harmless.float().mean(0)).norm()


def class_distance(
    harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"], form: Form
) -> Float[Tensor, ""]:
    """The distance that a form of the loss is about: between the classes' centres, or of pairs."""
    measure = centre_distance if form == "centre" else pair_distance
    return measure(harmful, harmless)


def batch_distance(
    harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"], form: Form, size: int
) -> float:
    """The distance as batches of `size` prompts of each class show it: the mean over them.

    The means of few prompts lie further apart than the classes' own, the more so, the wider the
    classes are spread. Measured alike, a model that has not moved has the ratio 1.
    """
    parts = max(1, min(len(harmful), len(harmless)) // size)
    found = [class_distance(harmful[i::parts], harmless[i::parts], form) for i in range(parts)]
    return float(torch.stack(found).mean())


def distance_term(
    distance: Float[Tensor, ""], base: float, form: Form, cap: float | None
) -> Float[Tensor, ""]:
    """The loss of one critical layer, to be minimised.

    Args:
        distance: of the model in training, see `class_distance`.
        base: the same of the base model, see `batch_distance`.
        form: `raw` is the paper's -distance; the others are -distance / base, so that layers of
            different scale weigh the same.
        cap: stop pushing at this multiple of the base's distance (a hinge); None never stops.
    """
    scale = 1.0 if form == "raw" else base
    reached = distance / scale
    return -reached if cap is None else -reached.clamp(max=cap * base / scale)


@dataclass(frozen=True)
class Geometry:
    """What two classes of embeddings look like at one layer.

    Attributes:
        distance: mean L2 distance over harmful-harmless pairs.
        spread: root mean squared distance to the class mean, averaged over the classes.
        norm: mean L2 norm over all embeddings.
        cosine: mean cosine similarity over harmful-harmless pairs.
    """

    distance: float
    spread: float
    norm: float
    cosine: float

    @property
    def separation(self) -> float:
        """Distance in units of the within-class spread; not met by inflating norms."""
        return self.distance / self.spread


def geometry(harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"]) -> Geometry:
    """Measures two classes of embeddings at one layer."""
    harmful, harmless = harmful.float(), harmless.float()
    spreads = [
        (states - states.mean(0)).square().sum(-1).mean().sqrt() for states in (harmful, harmless)
    ]
    unit = [torch.nn.functional.normalize(states, dim=-1) for states in (harmful, harmless)]
    return Geometry(
        distance=float(pair_distance(harmful, harmless)),
        spread=float(sum(spreads) / 2),
        norm=float(torch.cat([harmful, harmless]).norm(dim=-1).mean()),
        cosine=float((unit[0] @ unit[1].T).mean()),
    )
