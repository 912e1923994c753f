"""The one place that turns a prompt into the tokens a model sees, up to where it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from es2.errors import Es2Error

Thinking = Literal["none", "switched off", "closed empty thought"]

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with the generation prompt at its end.

    Models that think before they answer decide on a refusal where the *answer* starts. Their
    template's `enable_thinking` switch is turned off where there is one; an open or expected
    thought is closed empty. `thinking` says which was done.

    Args:
        tokenizer: a tokenizer with a chat template.
        name: the model's name, for error messages.
        system: a system message, or None for the template's own default.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str
    system: str | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise Es2Error(
                f"{self.name}: its tokenizer has no chat template, so it is a base model and not a "
                "chat model; use the instruct or chat version of it"
            )

    @cached_property
    def thinking(self) -> Thinking:
        """What was done so that the position after the template is where the answer starts."""
        return self._opening[1]

    @property
    def opening(self) -> str:
        """What is written between the generation prompt and the answer: mostly nothing."""
        return self._opening[0]

    @cached_property
    def _opening(self) -> tuple[str, Thinking]:
        """The text to add after the generation prompt, and why."""
        template = str(self.tokenizer.chat_template)
        rendered = self._apply("x")
        if rendered.rstrip().endswith(_OPEN):
            return f"\n\n{_CLOSE}\n\n", "closed empty thought"
        if "enable_thinking" in template:
            return "", "switched off"
        if _OPEN in template or _CLOSE in template:
            return f"{_OPEN}\n\n{_CLOSE}\n\n", "closed empty thought"
        return "", "none"

    def _apply(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        extra: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        try:
            return str(self.tokenizer.apply_chat_template(messages, enable_thinking=False, **extra))
        except TemplateError as error:  # some take no system message
            raise Es2Error(f"{self.name}: its chat template says: {error}") from error

    def render(self, prompt: str) -> str:
        """The templated prompt: the text after which the model answers."""
        return self._apply(prompt) + self.opening

    def encode(self, prompt: str, response: str = "") -> list[int]:
        """Token ids of the templated prompt, then of the start of a response.

        The two are tokenised apart, as they are when the model itself writes the response.
        """
        ids = self.tokenizer(self.render(prompt), add_special_tokens=False)["input_ids"]
        return [*ids, *self.encode_response(response)]

    def encode_response(self, response: str) -> list[int]:
        """Token ids of the start of a response alone."""
        if not response:
            return []
        return list(self.tokenizer(response, add_special_tokens=False)["input_ids"])

    @cached_property
    def head(self) -> int:
        """How many tokens stand before the user's text: all prompts start with the same ones."""
        return _shared(*self._two)

    @cached_property
    def tail(self) -> int:
        """How many tokens stand after the user's text: all prompts end in the same ones."""
        return _shared(*(row[::-1] for row in self._two))

    @property
    def _two(self) -> tuple[list[int], list[int]]:
        return self.encode("Hello there"), self.encode("x 7")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @cached_property
    def pad_id(self) -> int:
        """The token for padding; masked everywhere, so any token serves."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)


def _shared(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens two rows start with."""
    pairs = zip(one, two, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
