"""Options that several commands share: which model, which prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from es2.data.fitting import FitPrompts, Splits, fit_prompts, split_three_ways
from es2.data.sources import load_prompts, split_classes
from es2.errors import Es2Error
from es2.models.loading import ChatModel, load

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class PromptOptions:
    """Prompts to fit on: harmful and harmless, each a bundled name, a file, or a Hub data set.

    Attributes:
        harmful: what a safe model refuses.
        harmless: what it answers.
        borderline: harmless prompts that look harmful, counted as harmless; `none` for none.
        structured: harmless prompts over several lines, likewise.
        labelled: one file with both classes, instead of the three above.
        label_column: its column that says which prompts are harmful.
        prompt_column: the prompts' column in your files; default: guessed.
        at_most: at most this many prompts of each class.
    """

    harmful: str = "harmful"
    harmless: str = "harmless"
    borderline: str = "none"
    structured: str = "none"
    labelled: Path | None = None
    label_column: str | None = None
    prompt_column: str | None = None
    at_most: int | None = 200

    def load(self, seed: int) -> FitPrompts:
        """Loads them and cuts them into fitted and held out."""
        if self.labelled is not None:
            return self._of_one_file(str(self.labelled), seed)
        return fit_prompts(
            self._splits(self.harmful, True, seed),
            self._splits(self.harmless, False, seed),
            *(self._optional(source, seed) for source in (self.borderline, self.structured)),
            at_most=self.at_most,
        )

    def _optional(self, source: str, seed: int) -> Splits | None:
        return None if source == "none" else self._splits(source, False, seed)

    def _splits(self, source: str, harmful: bool, seed: int) -> Splits:
        read = partial(load_prompts, source, prompt_column=self.prompt_column, harmful=harmful)
        return split_three_ways(lambda split: read(split=split), source, seed)

    def _of_one_file(self, path: str, seed: int) -> FitPrompts:
        prompts = load_prompts(
            path, prompt_column=self.prompt_column, label_column=self.label_column
        )
        harmful, harmless = split_classes(prompts, path)
        return fit_prompts(
            split_three_ways(lambda _: harmful, path, seed),
            split_three_ways(lambda _: harmless, path, seed),
            at_most=self.at_most,
        )


def load_model(name: str, dtype: Dtype, device: str | None) -> ChatModel:
    """The model a command names."""
    return load(name, dtype=None if dtype == "auto" else getattr(torch, dtype), device=device)


def named_values(given: Sequence[str]) -> dict[str, Any]:
    """Settings from the command line; values are read as YAML, as in a recipe.

    Raises:
        Es2Error: for one that is not NAME=VALUE.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            values[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (name and equals and value):
            raise Es2Error(f"--settings {text!r} is not NAME=VALUE, such as seed=3")
    return values
