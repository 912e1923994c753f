"""Distributional preference learning (DPL): a reward model that says how far annotators disagree.

Source: Siththaranjan, Laidlaw and Hadfield-Menell, arXiv 2312.08358. Who was asked, and by what
criterion, is hidden from whoever reads the preferences. An answer's utility is therefore a
distribution, fitted by the likelihood that the preferred answer's draw is the greater one. Where
annotators agree it is narrow; where they do not it is wide, and a low quantile of it is what the
answer is worth to whoever would rather avoid risk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from scipy.special import ndtri
from torch import Tensor
from torch.nn.functional import softplus

from es2.defences.trainer import TrainSettings, batch_indices, learning_rate, save_state, seeded
from es2.errors import Es2Error

Form = Literal["mean_and_variance", "categorical"]
"""How a utility's distribution is given."""


@runtime_checkable
class Utility(Protocol):
    """A family of distributions, each given by `width` numbers."""

    @property
    def width(self) -> int:
        """How many numbers give a distribution."""
        ...

    def log_preferred(
        self, one: Float[Tensor, "n k"], two: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n"]:
        """log P(u1 > u2) of independent draws."""
        ...

    def added(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """What the loss has besides the likelihood."""
        ...

    def mean(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Of each distribution."""
        ...

    def deviation(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """Standard deviation of each distribution."""
        ...

    def quantile(self, numbers: Float[Tensor, "n k"], share: float) -> Float[Tensor, "n"]:
        """What a draw falls below with probability `share`."""
        ...


@dataclass(frozen=True)
class MeanAndVariance:
    """Normal utilities: the first number is the mean, the softplus of the second the deviation.

    The likelihood is the paper's, by the normal's own distribution function; the authors' code has
    a logistic approximation to that. Their variance penalty is 0 by default and left out.
    """

    @property
    def width(self) -> int:
        """Mean and deviation."""
        return 2

    def log_preferred(
        self, one: Float[Tensor, "n 2"], two: Float[Tensor, "n 2"]
    ) -> Float[Tensor, "n"]:
        """log Phi((mu1 - mu2) / sqrt(s1^2 + s2^2))."""
        variance = self.deviation(one).square() + self.deviation(two).square()
        # A softplus may underflow to 0.
        spread = variance.clamp(min=1e-12).sqrt()
        return torch.special.log_ndtr((self.mean(one) - self.mean(two)) / spread)

    def added(self, numbers: Float[Tensor, "n 2"]) -> Float[Tensor, ""]:
        """Nothing."""
        return numbers.new_zeros(())

    def mean(self, numbers: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
        """mu."""
        return numbers[:, 0]

    def deviation(self, numbers: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
        """s."""
        return softplus(numbers[:, 1])

    def quantile(self, numbers: Float[Tensor, "n 2"], share: float) -> Float[Tensor, "n"]:
        """mu + s Phi^-1(share)."""
        return self.mean(numbers) + float(ndtri(share)) * self.deviation(numbers)


@dataclass(frozen=True)
class Categorical:
    """Utilities in bins between 0 and 1, given by the bins' logits.

    Attributes:
        bins: how many.
        entropy: weight of the entropy of all the batch's distributions together, which the loss
            raises, so that no bin is forgotten.
    """

    bins: int = 10
    entropy: float = 0.1

    @property
    def width(self) -> int:
        """A number a bin."""
        return self.bins

    def log_preferred(
        self, one: Float[Tensor, "n k"], two: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n"]:
        """Log of the sum over bins i > j of p1(i) p2(j), and half of it where i = j."""
        chances = two.softmax(-1)
        below = chances.cumsum(-1) - chances / 2
        return (one.softmax(-1) * below).sum(-1).log()

    def added(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """The negated entropy of the mean distribution, weighed."""
        mean = numbers.softmax(-1).mean(0)
        return self.entropy * (mean * mean.log()).sum()

    def _values(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, "k"]:
        return torch.linspace(0, 1, self.bins, device=numbers.device)

    def mean(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """With bins that stand for evenly spaced points from 0 to 1."""
        return numbers.softmax(-1) @ self._values(numbers)

    def deviation(self, numbers: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
        """With the bins' points, as the mean."""
        away = self._values(numbers) - self.mean(numbers)[:, None]
        return (numbers.softmax(-1) * away.square()).sum(-1).sqrt()

    def quantile(self, numbers: Float[Tensor, "n k"], share: float) -> Float[Tensor, "n"]:
        """With bins that are intervals of even density: linear within a bin, as published."""
        chances = numbers.softmax(-1)
        upto = chances.cumsum(-1)
        bin_ = (upto < share).sum(-1, keepdim=True).clamp(max=self.bins - 1)
        own = chances.gather(-1, bin_)
        within = (share - (upto.gather(-1, bin_) - own)) / own
        return ((bin_ + within.clamp(0, 1)) / self.bins)[:, 0]


@dataclass(frozen=True)
class RewardModel:
    """A linear head on features of answers, each scaled to mean 0 and deviation 1.

    Attributes:
        utility: the family of distributions that the head's numbers give.
        centre: the features' mean where it was fitted.
        scale: their deviation.
        weight: of the head.
        bias: of the head.
    """

    utility: Utility
    centre: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]
    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, "k"]

    def numbers(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """What gives each answer's distribution."""
        return (features - self.centre) / self.scale @ self.weight + self.bias

    def mean(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Of each answer's utility."""
        return self.utility.mean(self.numbers(features))

    def deviation(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """Of each answer's utility."""
        return self.utility.deviation(self.numbers(features))

    def quantile(self, features: Float[Tensor, "n d"], share: float) -> Float[Tensor, "n"]:
        """Of each answer's utility."""
        return self.utility.quantile(self.numbers(features), share)


def fit(
    features: Float[Tensor, "n d"],
    preferred: Int[Tensor, "pairs 2"],
    utility: Utility,
    settings: TrainSettings,
    progress: Callable[[int], None] = lambda done: None,
) -> RewardModel:
    """Fits a head by the likelihood of preferences; a pure function of its arguments.

    Args:
        features: of the answers, on the CPU.
        preferred: the better and the worse answer of each comparison.
        utility: the family of distributions.
        settings: steps, comparisons a step, learning rate and seed.
        progress: called with 1 after every step.

    Raises:
        Es2Error: if the fit diverges.
    """
    centre, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    inputs = (features - centre) / scale
    # Almost zero, as published; further out the likelihood is harder to climb.
    shape = (features.shape[1], utility.width)
    weight = (2e-4 * torch.randn(shape, generator=seeded(settings.seed, 0))).requires_grad_()
    bias = torch.zeros(utility.width, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=settings.lr, weight_decay=1e-3)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, settings)
        picked = batch_indices(len(preferred), settings.batch_size, step, settings.seed)
        better, worse = (inputs[preferred[picked, side]] @ weight + bias for side in (0, 1))
        loss = utility.added(torch.cat([better, worse]))
        loss = loss - utility.log_preferred(better, worse).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        progress(1)
    if not weight.isfinite().all():
        raise Es2Error("the reward model diverged; lower its learning rate")
    return RewardModel(utility, centre, scale, weight.detach(), bias.detach())


def save(model: RewardModel, path: Path, key: str) -> None:
    """Keeps a reward model, with what it was fitted on.

    Raises:
        Es2Error: if the disk is full.
    """
    weights = {name: getattr(model, name) for name in ("centre", "scale", "weight", "bias")}
    save_state(path, {"key": key, **weights})


def kept(path: Path, utility: Utility, key: str) -> RewardModel | None:
    """The reward model kept there; None if there is none, or it was fitted on something else."""
    if not path.is_file():
        return None
    saved = torch.load(path, weights_only=True)
    return RewardModel(utility, **saved) if saved.pop("key") == key else None
