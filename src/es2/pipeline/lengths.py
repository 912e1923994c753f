"""How long a model's templated prompts are: by its tokenizer, or guessed where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer

from es2.attacks.target import AFFIRMATION
from es2.data.chat import ChatTemplate
from es2.data.sources import Prompt
from es2.errors import Es2Error
from es2.models.loading import adapter_base, source_of
from es2.models.work import Lengths

CHARACTERS = 4
"""In a token of English text, as a rule of thumb."""

TEMPLATE = (12, 8)
"""Tokens of a template before and behind the user's text, where it is not known."""


BYTES = 256
"""Tokens that any tokenizer of all texts has at the least."""


def lengths_of(name: str, prompts: Sequence[Prompt]) -> tuple[Lengths, str]:
    """Lengths for a model, and how they were come by.

    Args:
        name: of the model; no weights are loaded.
        prompts: that it is to be attacked with.
    """
    targets = [prompt.target or AFFIRMATION for prompt in prompts]
    template = _template(name)
    if template is None:
        head, tail = TEMPLATE
        how = f"{CHARACTERS} characters a token, {head + tail} tokens of template: no tokenizer"
        plain = Lengths(head, tail, 0, 0, _guessed)
    else:
        head, tail = template.head, template.tail
        known = cache(lambda text: float(len(template.encode_response(text))))
        how = f"the model's tokenizer and template ({head + tail} tokens)"
        plain = Lengths(head, tail, 0, 0, known)
    texts = [prompt.text for prompt in prompts]
    return Lengths(head, tail, plain.mean(texts), plain.mean(targets), plain.count), how


def _guessed(text: str) -> float:
    return len(text) / CHARACTERS


def _template(name: str) -> ChatTemplate | None:
    """A model's template, or None if its tokenizer is neither in a folder nor to be had."""
    if (Path(name) / "adapter_config.json").is_file():
        return _template(adapter_base(Path(name)))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source_of(name))
    except Es2Error:
        raise
    except Exception:  # missing and damaged files raise a dozen types, from three libraries
        return None
    if len(tokenizer) < BYTES:  # some families make one up where there are no files of it
        return None
    return ChatTemplate(tokenizer, name)
