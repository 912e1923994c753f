"""Splits: prompts to fit on, prompts to choose by, and prompts to report on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch

from es2.data.sources import BUNDLED, Prompt, load_prompts
from es2.errors import Es2Error

Item = TypeVar("Item")


@dataclass(frozen=True)
class FitPrompts:
    """Texts of both classes; never those that results are measured on.

    Attributes:
        harmful: for fitting.
        harmless: for fitting.
        held_harmful: for choosing strengths and checkpoints, and for the accuracy of probes.
        held_harmless: the same.
        held_borderline: harmless prompts that look harmful, for choosing checkpoints; those to fit
            on are among `harmless`.
        held_structured: harmless prompts that carry material over several lines, likewise.
    """

    harmful: Sequence[str]
    harmless: Sequence[str]
    held_harmful: Sequence[str]
    held_harmless: Sequence[str]
    held_borderline: Sequence[str] = ()
    held_structured: Sequence[str] = ()

    @property
    def held_safe(self) -> dict[str, Sequence[str]]:
        """All held-out prompts that are harmless, by kind."""
        return {
            "harmless": self.held_harmless,
            "borderline": self.held_borderline,
            "structured": self.held_structured,
        }

    def at_most(self, limit: int | None) -> FitPrompts:
        """The same with at most `limit` prompts in each group, spread evenly over it."""
        if limit is None:
            return self
        return FitPrompts(*(spread(getattr(self, group.name), limit) for group in fields(self)))


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spaced, in order."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]


@dataclass(frozen=True)
class Splits:
    """One source's prompts in three parts."""

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]


def split_three_ways(load: Callable[[str | None], list[Prompt]], source: str, seed: int) -> Splits:
    """A source's own splits where es2 ships it, else a seeded cut in 60 : 15 : 25.

    Args:
        load: loads the source, or one split of it.
        source: as the user named it.
        seed: of the cut.

    Raises:
        Es2Error: if there are too few prompts to cut.
    """
    if source in BUNDLED:
        return Splits(load("train"), load("validation"), load("test"))
    prompts = load(None)
    if len(prompts) < 8:
        raise Es2Error(
            f"{source}: {len(prompts)} prompts are too few to fit, validate and test on; give at "
            "least 8"
        )
    random = torch.Generator().manual_seed(seed)
    order = [prompts[i] for i in torch.randperm(len(prompts), generator=random).tolist()]
    train, test = round(0.6 * len(order)), round(0.25 * len(order))
    return Splits(order[:train], order[train:-test], order[-test:])


def fit_prompts(
    harmful: Splits,
    harmless: Splits,
    borderline: Splits | None = None,
    structured: Splits | None = None,
    *,
    at_most: int | None = None,
) -> FitPrompts:
    """The texts to fit on, at most so many of each class.

    Borderline and structured prompts count as harmless, and are half and a quarter of those that are
    taken if there are as many: what a model comes to refuse without need is what looks harmful, and
    what looks like nothing that it has seen. They are held out apart.
    """

    def texts(*groups: list[Prompt]) -> list[str]:
        return [prompt.text for group in groups for prompt in group]

    none = Splits([], [], [])
    lookalikes, forms = borderline or none, structured or none
    plain, alike, formed = harmless.train, lookalikes.train, forms.train
    if at_most is not None:
        alike, formed = spread(alike, at_most // 2), spread(formed, at_most // 4)
        plain = spread(plain, at_most - len(alike) - len(formed))
    return FitPrompts(
        harmful=texts(harmful.train),
        harmless=texts(plain, alike, formed),
        held_harmful=texts(harmful.validation),
        held_harmless=texts(harmless.validation),
        held_borderline=texts(lookalikes.validation),
        held_structured=texts(forms.validation),
    ).at_most(at_most)


def bundled_fit(extra: bool = True) -> FitPrompts:
    """es2's own prompts to fit on, with or without borderline and structured ones."""

    def splits(name: str) -> Splits:
        return split_three_ways(lambda split: load_prompts(name, split=split), name, seed=0)

    more = [splits(name) for name in ("borderline", "structured")] if extra else []
    return fit_prompts(splits("harmful"), splits("harmless"), *more)
