"""Asking a chat model behind an OpenAI-compatible endpoint: vLLM, a llama.cpp server, a hosted one.

The `openai` package does the HTTP: it tries again after 408, 409, 429, 5xx and broken connections,
with growing pauses or as long as Retry-After says, and names what went wrong by type. What it lacks is
here: a pace, answers that are paid for once, costs, and stopping early where asking on is no use.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit, urlunsplit

from pydantic import ConfigDict

from es2.errors import Es2Error

Message = Mapping[str, str]
"""`role` and `content`."""

_PATIENCE = 5
"""Failures in a row, each after its retries, after which an endpoint is asked no more."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, whom, how fast and at what price.

    Attributes:
        url: up to what stands before `/chat/completions`, such as http://localhost:8000/v1.
        model: as the endpoint names it.
        key_variable: the environment variable that holds the key; local servers need none.
        requests_per_minute: at most so many, retries included; None for no limit.
        concurrency: requests under way at once.
        timeout: seconds to wait for an answer.
        retries: of a request that failed in a way that may pass.
        temperature: None leaves it to the endpoint, as some models demand.
        answer_tokens: longest answer; None leaves it to the endpoint.
        price_in: of a million tokens read, in any currency; None if it is of no interest.
        price_out: of a million tokens written.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    requests_per_minute: float | None = None
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 5
    temperature: float | None = 0.0
    answer_tokens: int | None = 512
    price_in: float | None = None
    price_out: float | None = None

    # Read by pydantic, from a recipe: a misspelt key is an error.
    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises an Es2Error for an endpoint that cannot be asked."""
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise Es2Error(f"endpoint {self.url!r} is no http(s) address")
        for name, least in (("concurrency", 1), ("retries", 0), ("price_in", 0), ("price_out", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Es2Error(f"{name} is {value}, but has to be at least {least}")
        for name in ("requests_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise Es2Error(f"{name} is {value}, but has to be above 0")

    @property
    def place(self) -> str:
        """The address without any name and password in it: what may be shown and stored."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


@dataclass(frozen=True)
class Answer:
    """What an endpoint said, and what that took.

    Attributes:
        content: the text.
        tokens_in: tokens it read, as it counts them; None if it did not say.
        tokens_out: tokens it wrote.
        cost: at the prices given; None without prices or counts.
    """

    content: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None


class Unanswered(Exception):
    """One line on why an endpoint gave no answer."""


@runtime_checkable
class Memory(Protocol):
    """Answers that have been paid for, by a hash of what was asked."""

    def get(self, key: str) -> Answer | None:
        """The answer, if it is known."""
        ...

    def keep(self, key: str, answer: Answer) -> None:
        """Remembers an answer."""
        ...


class Forgetful:
    """Remembers for as long as the process runs."""

    def __init__(self) -> None:
        self._known: dict[str, Answer] = {}

    def get(self, key: str) -> Answer | None:
        """The answer, if it is known."""
        return self._known.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Remembers an answer."""
        self._known[key] = answer


class Pace:
    """Lets at most so many through a minute, evenly spaced; waits in the caller's thread."""

    def __init__(self, per_minute: float | None):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when the caller's turn has come."""
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._gap
        time.sleep(max(0.0, turn - time.monotonic()))


class Client:
    """Asks one endpoint; may be used by several threads at once."""

    def __init__(self, endpoint: Endpoint, memory: Memory | None = None):
        self.endpoint = endpoint
        self._memory: Memory = memory if memory is not None else Forgetful()
        self._pace = Pace(endpoint.requests_per_minute)
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        self._lock = threading.Lock()
        self._failures = 0
        self._stopped: str | None = None

    def ask(self, messages: Sequence[Message], version: str) -> Answer:
        """The answer to a conversation, from memory if it has been asked before.

        Args:
            messages: the conversation.
            version: of what is asked, such as a rubric's; another version asks anew.

        Raises:
            Unanswered: if there is none. Where others would have none either (no connection, a
                wrong key, an unknown model, failure upon failure) the endpoint is asked no more.
        """
        key = self._hash(messages, version)
        with self._lock:
            known = self._memory.get(key)
            if known is not None:
                return known
            if self._stopped is not None:
                raise Unanswered(self._stopped)
        answer = self._request(messages)
        with self._lock:
            self._failures = 0
            self._memory.keep(key, answer)
        return answer

    def _hash(self, messages: Sequence[Message], version: str) -> str:
        end = self.endpoint
        asked = [end.place, end.model, version, end.temperature, end.answer_tokens]
        return sha256(json.dumps([*asked, [dict(m) for m in messages]]).encode()).hexdigest()

    @cached_property
    def _openai(self) -> Any:
        try:
            import openai
        except ImportError:
            raise Unanswered(
                "asking an endpoint needs the package openai; pip install 'es2[judges]'"
            ) from None
        return openai

    @cached_property
    def _api(self) -> Any:
        def paced(request: Any) -> None:  # every try, the library's retries too
            self._pace.wait()

        return self._openai.OpenAI(
            # The library insists on a key; a server that wants none ignores it.
            api_key=self._key or "none",
            base_url=self.endpoint.url,
            timeout=self.endpoint.timeout,
            max_retries=self.endpoint.retries,
            http_client=self._openai.DefaultHttpxClient(event_hooks={"request": [paced]}),
        )

    def _request(self, messages: Sequence[Message]) -> Answer:
        end = self.endpoint
        asked = {"temperature": end.temperature, "max_tokens": end.answer_tokens}
        options = {name: value for name, value in asked.items() if value is not None}
        with self._lock:
            api, openai = self._api, self._openai
        try:
            found = api.chat.completions.create(
                model=end.model, messages=[dict(message) for message in messages], **options
            )
        except openai.APITimeoutError:
            raise self._failed(f"no answer within {end.timeout:g} s") from None
        except openai.APIConnectionError as error:
            reason = self._line(str(error.__cause__ or error))
            raise self._failed(f"cannot be reached ({reason})", final=True) from None
        except openai.AuthenticationError:
            has = "refuses the key in" if self._key else "asks for a key, and there is none in"
            raise self._failed(f"{has} {end.key_variable}", final=True) from None
        except (openai.PermissionDeniedError, openai.NotFoundError) as error:
            where = "; does the address lack its /v1?" if error.status_code == 404 else ""
            why = f"does not give {end.model!r} ({error.status_code}: {self._line(error.message)})"
            raise self._failed(why + where, final=True) from None
        except openai.APIStatusError as error:
            why = f"status {error.status_code} ({self._line(error.message)})"
            raise self._failed(why) from None
        except (openai.APIError, ValueError) as error:
            raise self._failed(f"not understood ({self._line(str(error))})") from None
        return self._answer(found)

    def _answer(self, found: Any) -> Answer:
        """What a response holds; a server's JSON may lack anything."""
        try:
            content = found.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            raise self._failed("what it sent is no chat completion") from None
        usage = getattr(found, "usage", None)
        counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        read, written = [count if isinstance(count, int) else None for count in counts]
        answer = Answer(self._secretless(str(content or "")), read, written)
        return replace(answer, cost=self._cost(read, written))

    def _cost(self, read: int | None, written: int | None) -> float | None:
        end = self.endpoint
        if (end.price_in is None and end.price_out is None) or read is None or written is None:
            return None
        return (read * (end.price_in or 0) + written * (end.price_out or 0)) / 1e6

    def _failed(self, why: str, final: bool = False) -> Unanswered:
        """Counts a failure, and stops where asking on is no use."""
        why = f"{self.endpoint.place}: {why}"
        with self._lock:
            self._failures += 1
            if self._failures >= _PATIENCE and not final:
                final, why = True, f"{why}; given up after {self._failures} failures in a row"
            if final and self._stopped is None:
                self._stopped = why
        return Unanswered(why)

    def _line(self, text: str) -> str:
        return self._secretless(" ".join(text.split()))[:200]

    def _secretless(self, text: str) -> str:
        """The text without the key: a server may send back what it was sent."""
        # Short ones are placeholders such as `none`, and words of ordinary texts.
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text
