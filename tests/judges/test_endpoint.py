"""Asking a chat endpoint: patience with what passes, none with what does not, and no key anywhere."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chat_server import Asked, Reply, chat_server, failing
from es2.errors import Es2Error
from es2.judges.endpoint import Answer, Client, Endpoint, Pace, Unanswered
from es2.results.answers import AnswerFile

GOOD = Reply("yes")
KEY = "sk-a-key-nobody-may-see"


def ask(client: Client, text: str = "Hello?", version: str = "v1") -> Answer:
    return client.ask([{"role": "user", "content": text}], version)


def client(url: str, memory: AnswerFile | None = None, **settings: Any) -> Client:
    return Client(Endpoint(url, "m", **{"retries": 0, **settings}), memory)


def test_an_answer_comes_with_its_tokens_and_cost() -> None:
    with chat_server(lambda asked: GOOD) as server:
        asker = client(server.url, price_in=2.0, price_out=10.0)
        # 100 tokens at 2 a million and 20 at 10 a million.
        answer = ask(asker)
        assert (answer.content, answer.tokens_in, answer.tokens_out) == ("yes", 100, 20)
        assert answer.cost == pytest.approx(400e-6)
        assert server.asked[0].body["model"] == "m"
        assert server.asked[0].body["temperature"] == 0
        assert server.asked[0].body["max_tokens"] == 512


def test_settings_that_a_model_refuses_can_be_left_out() -> None:
    with chat_server(lambda asked: GOOD) as server:
        ask(client(server.url, temperature=None, answer_tokens=None))
        assert not {"temperature", "max_tokens"} & server.asked[0].body.keys()


def test_without_prices_there_is_no_cost() -> None:
    with chat_server(lambda asked: GOOD) as server:
        assert ask(client(server.url)).cost is None


def test_retry_after_is_waited_for() -> None:
    busy = Reply("busy", status=429, headers={"Retry-After": "1"})
    with chat_server(failing(1, busy, GOOD)) as server:
        assert ask(client(server.url, retries=1)).content == "yes"
        first, second = server.asked
        assert 1.0 <= second.at - first.at < 3


def test_server_errors_are_tried_again_and_then_told() -> None:
    broken = Reply(status=500, body='{"error": {"message": "out of order"}}')
    with chat_server(failing(1, broken, GOOD)) as server:
        assert ask(client(server.url, retries=1)).content == "yes"
    with chat_server(lambda asked: broken) as server:
        with pytest.raises(Unanswered, match="status 500"):
            ask(client(server.url, retries=1))
        assert len(server.asked) == 2


def test_no_answer_in_time_is_told() -> None:
    late = pytest.raises(Unanswered, match=r"no answer within 0\.2 s")
    with chat_server(lambda asked: Reply("late", delay=0.6)) as server, late:
        ask(client(server.url, timeout=0.2))


@pytest.mark.parametrize(
    "body", ["", "not json", "[]", "{}", '{"choices": []}', '{"choices": [{"message": null}]}']
)
def test_what_is_no_chat_completion_is_told(body: str) -> None:
    told = pytest.raises(Unanswered, match=r"no chat completion|not understood")
    with chat_server(lambda asked: Reply(body=body)) as server, told:
        ask(client(server.url))


def test_html_in_place_of_json_is_told() -> None:
    page = Reply(body="<html>hello</html>", headers={"Content-Type": "text/html"})
    with chat_server(lambda asked: page) as server, pytest.raises(Unanswered):
        ask(client(server.url))


@pytest.mark.parametrize(
    ("status", "words"), [(401, "OPENAI_API_KEY"), (403, "'m'"), (404, "'m'.*address")]
)
def test_a_wrong_key_or_model_stops_all_asking_at_once(status: int, words: str) -> None:
    with chat_server(lambda asked: Reply(status=status, body="{}")) as server:
        asker = client(server.url, retries=3)
        for text in "abc":
            with pytest.raises(Unanswered, match=words):
                ask(asker, text)
        assert len(server.asked) == 1


def test_an_address_where_nobody_listens_stops_all_asking() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    asker = client(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(Unanswered, match="cannot be reached"):
        ask(asker)
    started = time.monotonic()
    with pytest.raises(Unanswered, match="cannot be reached"):
        ask(asker)
    assert time.monotonic() - started < 0.1


def test_failure_upon_failure_stops_asking_and_a_success_between_does_not() -> None:
    down = Reply(status=500, body="{}")
    with chat_server(lambda asked: down) as server:
        asker = client(server.url)
        for number in range(8):
            with pytest.raises(Unanswered, match="status 500"):
                ask(asker, str(number))
        assert len(server.asked) == 5
    with chat_server(lambda asked: GOOD if "up" in asked.user else down) as server:
        asker = client(server.url)
        for number in range(2):
            for _ in range(4):
                with pytest.raises(Unanswered):
                    ask(asker, "down")
            assert ask(asker, f"up {number}").content == "yes"
        assert len(server.asked) == 10


def test_a_request_that_the_server_calls_bad_stops_nothing() -> None:
    def reply(asked: Asked) -> Reply:
        return Reply(status=400, body="{}") if "long" in asked.user else GOOD

    with chat_server(reply) as server:
        asker = client(server.url)
        with pytest.raises(Unanswered, match="status 400"):
            ask(asker, "too long")
        assert ask(asker, "short").content == "yes"


def test_what_has_been_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    with chat_server(lambda asked: GOOD) as server:
        first = ask(client(server.url, AnswerFile(tmp_path), price_in=1.0))
        memory = AnswerFile(tmp_path)
        again = ask(client(server.url, memory, price_in=1.0))
        assert again == first and len(server.asked) == 1
        assert memory.spending().answers == 1
        assert memory.spending().cost == pytest.approx(100e-6)
        for other in (
            lambda: ask(client(server.url, memory), "Other?"),
            lambda: ask(client(server.url, memory), version="v2"),
            lambda: ask(Client(Endpoint(server.url, "n", retries=0), memory)),
        ):
            other()
        assert len(server.asked) == 4


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    with chat_server(failing(1, Reply(status=500, body="{}"), GOOD)) as server:
        with pytest.raises(Unanswered):
            ask(client(server.url, AnswerFile(tmp_path)))
        assert ask(client(server.url, AnswerFile(tmp_path))).content == "yes"


def test_requests_keep_the_pace_retries_included() -> None:
    with chat_server(failing(1, Reply(status=500, body="{}"), GOOD)) as server:
        asker = client(server.url, requests_per_minute=600, retries=1)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: ask(asker, str(number)), range(6)))
        times = sorted(one.at for one in server.asked)
        assert len(times) == 7
        # Six gaps of a tenth of a second; arrival may jitter, their sum hardly.
        assert times[-1] - times[0] >= 0.57


def test_the_pace_does_not_save_up_turns() -> None:
    pace = Pace(1200)
    pace.wait()
    time.sleep(0.2)
    started = time.monotonic()
    for _ in range(3):
        pace.wait()
    assert time.monotonic() - started >= 0.095


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost:8000"}, "http"),
        ({"concurrency": 0}, "concurrency"),
        ({"requests_per_minute": 0.0}, "requests_per_minute"),
        ({"price_in": -1.0}, "price_in"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(Es2Error, match=words):
        Endpoint(**{"url": "http://x/v1", "model": "m", **settings})


def test_the_key_is_sent_and_stands_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server sends back what it was sent: in an answer, and in errors."""
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level("DEBUG")

    def reply(asked: Asked) -> Reply:
        sent = asked.headers["authorization"]
        if "error" in asked.user:
            return Reply(status=int(asked.user[-3:]), body=f'{{"error": {{"message": "{sent}"}}}}')
        return Reply(f"you sent {sent}")

    with chat_server(reply) as server:
        asker = client(server.url, AnswerFile(tmp_path), key_variable="MY_KEY")
        assert ask(asker).content == "you sent Bearer [key]"
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
        for status in (400, 429, 500, 403):
            with pytest.raises(Unanswered) as caught:
                ask(asker, f"error {status}")
            assert str(status) in str(caught.value)
            assert KEY not in str(caught.value)
            assert caught.value.__cause__ is None
    assert KEY not in repr(asker.endpoint) + caplog.text
    for path in tmp_path.rglob("*"):
        assert KEY not in path.read_text()


def test_a_name_and_password_in_the_address_are_not_shown() -> None:
    assert Endpoint("http://me:word@host:1/v1?t=1", "m").place == "http://host:1/v1"
