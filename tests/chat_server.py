"""A real HTTP server that speaks the OpenAI chat completions format, and misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server sends back."""

    content: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    delay: float = 0.0


@dataclass
class Asked:
    """A request that came in."""

    at: float
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def user(self) -> str:
        """The first user message."""
        return next(m["content"] for m in self.body["messages"] if m["role"] == "user")


@dataclass
class ChatServer:
    """`reply` decides on each request; `asked` keeps them all."""

    url: str
    reply: Callable[[Asked], Reply]
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def chat_server(reply: Callable[[Asked], Reply]) -> Iterator[ChatServer]:
    """Serves on a free local port until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(time.monotonic(), headers, json.loads(self.rfile.read(length)))
            with lock:
                state.asked.append(asked)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                sent = state.reply(asked)
                time.sleep(sent.delay)
            finally:
                with lock:
                    state.at_once -= 1
            data = (sent.body if sent.body is not None else completion(sent.content)).encode()
            try:
                self.send_response(sent.status)
                for name, value in {"Content-Type": "application/json", **sent.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # a client that has waited long enough
                pass

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1", reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def completion(content: str) -> str:
    """A chat completion with 100 tokens read and 20 written."""
    message = {"role": "assistant", "content": content}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
    )


def failing(times: int, first: Reply, then: Reply) -> Callable[[Asked], Reply]:
    """Replies with `first` so many times, and with `then` from there on."""
    left = [times]

    def reply(asked: Asked) -> Reply:
        left[0] -= 1
        return first if left[0] >= 0 else then

    return reply
