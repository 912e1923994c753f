"""Two dimensions to look at: embeddings along and across the direction between the classes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

AXES = (
    "x: along the difference of the class means; y: the first principal component of what is left; "
    "both in units of the base model's within-class spread at that layer, centred between the means"
)


def project(
    harmful: Float[Tensor, "n d"],
    harmless: Float[Tensor, "m d"],
    others: Float[Tensor, "k d"],
    unit: float,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "m 2"], Float[Tensor, "k 2"]]:
    """Projects three groups of embeddings on the plane that the first two span.

    Args:
        harmful: one class.
        harmless: the other.
        others: shown in the same plane; they do not choose it.
        unit: length that counts as 1.
    """
    middle = (harmful.mean(0) + harmless.mean(0)) / 2
    across = torch.nn.functional.normalize(harmful.mean(0) - harmless.mean(0), dim=0)
    both = torch.cat([harmful, harmless]) - middle
    rest = both - (both @ across)[:, None] * across
    up = torch.linalg.svd(rest - rest.mean(0), full_matrices=False).Vh[0]
    # The sign of a singular vector is arbitrary; fix it, so that a rerun draws the same figure.
    up = up * up[up.abs().argmax()].sign()
    plane = torch.stack([across, up], dim=1) / unit
    first, second, third = ((group - middle) @ plane for group in (harmful, harmless, others))
    return first, second, third
