"""Linear probes: where in the model harmful and harmless prompts become linearly separable.

A logistic regression a layer, as SCAV fits them (arXiv 2404.12038, section 3.1): L2-regularised, on
the residual stream at the last token of the templated prompt, neither centred nor scaled, so that
its direction can be applied where it was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from es2.data.fitting import FitPrompts, spread
from es2.models.forward import forward
from es2.models.generation import in_batches
from es2.models.loading import ChatModel
from es2.progress import bar

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class Probe:
    """P(harmful | e) = sigmoid(w . e + b) at one layer.

    Attributes:
        w: weights [d], float32.
        b: bias.
        accuracy: on prompts it was not fitted on.
    """

    w: Float[Tensor, "d"]
    b: float
    accuracy: float

    def logit(self, states: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """w . e + b."""
        return states.float() @ self.w.to(states.device) + self.b


def prompt_states(
    chat: ChatModel,
    prompts: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
    layers: Sequence[int] = (),
) -> Float[Tensor, "n layers d"]:
    """Residual stream at the last token of each templated prompt; on the CPU.

    At every layer, or at those given.
    """
    rows = [chat.template.encode(prompt) for prompt in prompts]
    return last_states(chat, rows, layers or range(1, chat.depth + 1), progress)


@torch.no_grad()
def last_states(
    chat: ChatModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "n layers d"]:
    """Residual stream at the last token of each row, at some layers; on the CPU."""

    def run(batch: list[int]) -> list[Tensor]:
        own = [rows[place] for place in batch]
        out = forward(chat, own, layers=layers, stop=True)
        last = [len(row) - 1 for row in own]
        stacked = [out.at(out.states[layer], range(len(own)), last) for layer in layers]
        return list(torch.stack(stacked, dim=1).float().cpu())

    return torch.stack(in_batches(chat, rows, run, progress))


def _regression(seed: int) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression  # a second to import

    # Newton's method with conjugate gradients reaches in a dozen steps what the default needs
    # hundreds for, and inverts no matrix: the states' scales would make one ill-conditioned.
    return LogisticRegression(solver="newton-cg", max_iter=500, tol=1e-6, random_state=seed)


def fit_probe(
    states: Float[Tensor, "n d"],
    harmful: Bool[Tensor, "n"],
    held_out: Float[Tensor, "m d"],
    held_out_harmful: Bool[Tensor, "m"],
    seed: int = 0,
) -> Probe:
    """Fits one layer's probe and measures it on held-out prompts."""
    model = _regression(seed)
    model.fit(states.double().numpy(), harmful.numpy())
    accuracy = float(np.mean(model.predict(held_out.double().numpy()) == held_out_harmful.numpy()))
    w = torch.tensor(model.coef_[0], dtype=torch.float32)
    return Probe(w, float(model.intercept_[0]), accuracy)


def cross_validated(
    harmful: Float[Tensor, "n d"], harmless: Float[Tensor, "m d"], seed: int = 0, folds: int = 5
) -> float:
    """Accuracy of probes, each on the fold that it was not fitted on: every prompt counts once."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    labels = np.arange(len(harmful) + len(harmless)) < len(harmful)
    folds = max(2, min(folds, len(harmful), len(harmless)))
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
    states = torch.cat([harmful, harmless]).double().numpy()
    return float(np.mean(cross_val_predict(_regression(seed), states, labels, cv=cut) == labels))


@dataclass(frozen=True)
class ClassStates:
    """States of both classes at every layer, for fitting and held out."""

    harmful: Float[Tensor, "n layers d"]
    harmless: Float[Tensor, "m layers d"]
    held_harmful: Float[Tensor, "p layers d"]
    held_harmless: Float[Tensor, "q layers d"]

    def fitted_on(self, limit: int) -> ClassStates:
        """The same with at most `limit` prompts of each class to fit on, evenly spaced."""
        harmful, harmless = (
            states[spread(range(len(states)), limit)] for states in (self.harmful, self.harmless)
        )
        return ClassStates(harmful, harmless, self.held_harmful, self.held_harmless)


def class_states(
    chat: ChatModel, fit: FitPrompts, progress: Callable[[int], None] = lambda done: None
) -> ClassStates:
    """The states of all four groups of prompts."""
    groups = (fit.harmful, fit.harmless, fit.held_harmful, fit.held_harmless)
    return ClassStates(*(prompt_states(chat, texts, progress) for texts in groups))


def read_states(chat: ChatModel, fit: FitPrompts) -> ClassStates:
    """The model's states on the prompts to fit on, with a progress bar."""
    groups = (fit.harmful, fit.harmless, fit.held_harmful, fit.held_harmless)
    with bar(f"reading embeddings of {chat.name}", sum(map(len, groups))) as advance:
        return class_states(chat, fit, advance)


def fit_probes(states: ClassStates, seed: int = 0, layers: Sequence[int] = ()) -> dict[int, Probe]:
    """A probe for every layer, or for those given, keyed by the 1-based layer."""
    fit = torch.cat([states.harmful, states.harmless])
    labels = torch.arange(len(fit)) < len(states.harmful)
    held = torch.cat([states.held_harmful, states.held_harmless])
    held_labels = torch.arange(len(held)) < len(states.held_harmful)
    return {
        layer: fit_probe(fit[:, layer - 1], labels, held[:, layer - 1], held_labels, seed)
        for layer in layers or range(1, fit.shape[1] + 1)
    }
