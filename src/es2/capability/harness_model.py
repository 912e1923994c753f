"""An es2 model as lm-evaluation-harness sees it: the harness's own wrapper, with es2's forward.

Where the harness computes logits of the whole vocabulary at every position, only those at the scored
positions are needed; and what all contexts start with, such as a template's head or the same solved
examples, is computed once. The numbers are the same.
This module imports lm_eval, so it is itself imported only when a task is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from es2.errors import Es2Error
from es2.models.blocks import logits
from es2.models.forward import Held, forward, shared_prefix
from es2.models.generation import in_batches, out_of_memory
from es2.models.loading import ChatModel
from es2.progress import bar

Scored = tuple[float, bool]
"""A continuation's log-likelihood in nats, and whether greedy decoding would write it."""


@dataclass(frozen=True)
class _Row:
    """Tokens that a pass reads, and the continuations that are scored at its end.

    Attributes:
        tokens: the context, then all but the last token of a continuation.
        first: the position that predicts the continuation's first token.
        ends: each continuation's tokens, by the number of the request.
    """

    tokens: tuple[int, ...]
    first: int
    ends: dict[int, list[int]]

    def __len__(self) -> int:
        return len(self.tokens)


def _common(rows: Sequence[_Row]) -> int:
    """How many tokens all rows start with, before any position that is scored."""
    if not rows:
        return 0
    return min(shared_prefix([row.tokens for row in rows]), *(row.first for row in rows))


class HarnessModel(HFLM):  # type: ignore[misc]  # lm_eval is not typed
    """Wraps a model that is loaded already; its tokenizer is copied, as the harness changes it.

    Args:
        chat: the model.
        chat_template: whether prompts will be templated; if so the template alone says whether they
            start with a BOS token.
        batch_size: rows that are generated at a time.
    """

    def __init__(self, chat: ChatModel, chat_template: bool, batch_size: int) -> None:
        super().__init__(
            pretrained=chat.inner,
            tokenizer=deepcopy(chat.tokenizer),
            batch_size=batch_size,
            add_bos_token=False if chat_template else None,
            enable_thinking=False,
        )
        self.chat = chat
        self._advance: Callable[[int], None] = lambda count: None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The templated text, up to where the answer starts: a thought is closed, as all over es2."""
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        return f"{text}{self.chat.template.opening}" if add_generation_prompt else str(text)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """Continuations scored, with es2's progress bar in place of the harness's."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Scored]:
        """Scores continuations of contexts; as HFLM, a row that is too long loses its start."""
        contexts: dict[tuple[int, ...], dict[tuple[int, ...], _Row]] = {}
        for number, (_, context, end) in enumerate(requests):
            assert 0 < len(end) <= self.max_length, "a continuation without tokens, or too long"
            whole = tuple([*context, *end][-(self.max_length + 1) :])
            first = len(whole) - len(end) - 1
            rows = contexts.setdefault(whole[: first + 1], {})
            row = rows.setdefault(whole[:-1], _Row(whole[:-1], first, {}))
            row.ends[number] = end
        # Letters leave one row a context; longer options several, whose context is then shared.
        single = [row for rows in contexts.values() if len(rows) == 1 for row in rows.values()]
        several = [list(rows.values()) for rows in contexts.values() if len(rows) > 1]
        held = Held()
        found: dict[int, Scored] = {}
        # A CPU is as busy with few rows as with many, and few of like length hold less padding.
        size = 4 if self.chat.device.type == "cpu" else None
        with bar(f"{self.chat.name}: log-likelihoods", len(contexts)) as advance:
            score = partial(self._score, single, held=held, common=_common(single))
            for scores in in_batches(self.chat, single, score, advance, size):
                found |= scores
            for rows_of_one in several:
                score = partial(self._score, rows_of_one, held=held, common=_common(rows_of_one))
                for scores in in_batches(self.chat, rows_of_one, score, size=size):
                    found |= scores
                advance()
        return [found[number] for number in range(len(requests))]

    @torch.no_grad()
    def _score(
        self, rows: Sequence[_Row], batch: list[int], held: Held, common: int
    ) -> list[dict[int, Scored]]:
        own = [rows[place] for place in batch]
        out = forward(self.chat, [row.tokens for row in own], keep=common, held=held)
        assert out.final is not None
        spans = [range(row.first, len(row)) for row in own]
        index = [place for place, span in enumerate(spans) for _ in span]
        hidden = out.at(out.final, index, [position for span in spans for position in span])
        chances = logits(self.chat.model, hidden).log_softmax(-1)
        results = []
        for row, each in zip(own, chances.split([len(span) for span in spans]), strict=True):
            likeliest = each.argmax(-1).tolist()
            scored = {}
            for number, end in row.ends.items():
                tokens = torch.tensor(end, device=each.device)[:, None]
                scored[number] = (float(each.gather(-1, tokens).sum()), likeliest == end)
            results.append(scored)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, by the harness, with es2's progress bar.

        Raises:
            Es2Error: if memory runs out, or a task's answers do not fit into the model's context.
        """
        try:
            with bar(f"{self.chat.name}: answers", len(requests)) as self._advance:
                return list(super().generate_until(requests, disable_tqdm=True))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise Es2Error(
                f"{self.chat.name}: no memory for {self.batch_size} answers at a time; give a "
                "smaller --batch-size"
            ) from error
        except AssertionError as error:
            raise Es2Error(f"{self.chat.name}: {error}") from error

    def _model_generate(self, context: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        answers: torch.Tensor = super()._model_generate(context, *args, **named)
        self._advance(len(context))
        return answers
