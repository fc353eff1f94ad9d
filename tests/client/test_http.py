"""Calls: what is sent, what is repeated, what their failures say."""

from __future__ import annotations

import email.utils
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import httpx2
import pytest

from holdfast.client import (
    ApiError,
    AsyncClient,
    Backoff,
    Client,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    RateLimited,
    ServerUnreachable,
    Unauthorized,
    Unavailable,
)


def client_of(answer) -> Client:
    return Client("http://server.test/base/", "key-1", transport=httpx2.MockTransport(answer))


def test_start_sends_only_what_was_given():
    """The server's defaults hold for what the caller did not say."""
    seen = []

    def answer(request):
        seen.append(request)
        return httpx2.Response(201, json={"id": "r_1"})

    with client_of(answer) as client:
        assert client.start("hello", session="s", on_busy="reject") == {"id": "r_1"}
    assert seen[0].url == "http://server.test/base/api/runs"
    assert json.loads(seen[0].content) == {"input": "hello", "session": "s", "on_busy": "reject"}
    assert seen[0].headers["authorization"] == "Bearer key-1"


def test_an_answer_that_was_lost_is_asked_for_again_under_the_same_key():
    """P8 of starts: the outcome of a lost answer is unknown, and a repeat must not make a second run."""
    seen = []

    def answer(request):
        seen.append(request.headers["idempotency-key"])
        if len(seen) < 3:
            raise httpx2.RemoteProtocolError("closed without an answer")
        return httpx2.Response(201, json={"id": "r_1"})

    with client_of(answer) as client:
        client.start("hello")
        client.start("hello")
    assert len(set(seen[:3])) == 1
    assert seen[3] != seen[0]


def test_repeats_are_counted():
    """P7: a server that drops every connection is unreachable, not retried for ever."""
    seen = []

    def answer(request):
        seen.append(request)
        raise httpx2.ReadError("reset")

    with client_of(answer) as client, pytest.raises(ServerUnreachable, match="reset"):
        client.record("r_1")
    assert len(seen) == 3


def test_refusal_carries_code_detail_and_remedy():
    """P8: the client says what the server said, whole."""
    problem = {
        "title": "Conflict",
        "status": 409,
        "code": "session_busy",
        "detail": "session s has an active run",
        "remedy": "wait",
        "retryable": True,
        "active": "r_0",
    }
    with client_of(lambda request: httpx2.Response(409, json=problem)) as client, pytest.raises(ApiError) as caught:
        client.start("hello")
    error = caught.value
    assert (error.status, error.code, error.retryable, error.remedy) == (409, "session_busy", True, "wait")
    assert error.fields["active"] == "r_0"
    assert str(error) == "session_busy: session s has an active run; wait"


@pytest.mark.parametrize(
    "answer", [httpx2.Response(404, text="<html>"), httpx2.Response(200, text="hi"), httpx2.Response(200, json=[])]
)
def test_another_kind_of_server_is_named_as_such(answer):
    """Whoever points the client at the wrong port learns it from the message."""
    with (
        client_of(lambda request: answer) as client,
        pytest.raises(ApiError, match="check that the address is a Holdfast server"),
    ):
        client.runs()


def test_ids_cannot_leave_their_place_in_the_path():
    """An id is one part of a path, whatever it contains."""
    seen = []

    def answer(request):
        seen.append(request.url.raw_path)
        return httpx2.Response(200, json={})

    with client_of(answer) as client:
        client.record("a/../b?c")
    assert seen == [b"/base/api/runs/a%2F..%2Fb%3Fc"]


@pytest.mark.parametrize("url", ["", "localhost:8484", "ftp://x", "http://"])
def test_address_must_be_http(url):
    """A wrong address is said at once, with one that would do."""
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8484"):
        Client(url)


def test_nobody_there_is_unreachable_with_a_remedy():
    """The first thing that goes wrong for a new user says what to do."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServerUnreachable, match="holdfast demo") as caught:
            client.runs()
    assert caught.value.url == url


def test_silence_counts_as_an_interruption():
    """F50: a connection that is dead without a FIN is noticed, because even keepalives are missing."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: keepalive\n\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    heard: list[str] = []
    backoff = Backoff(attempts=1, sleep=lambda s: None)
    began = time.monotonic()
    try:
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", silence_s=0.2, backoff=backoff) as client:
            reader = client.events("r_1", on_interrupt=lambda cause, wait_s: heard.append(cause))
            threading.Timer(0.7, listener.close).start()
            with pytest.raises(ServerUnreachable):
                list(reader)
    finally:
        listener.close()
        for connection in taken:
            connection.close()
    assert "ReadTimeout" in heard[0]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (429, RateLimited),
        (503, Unavailable),
    ],
)
def test_each_kind_of_refusal_has_its_class(status, kind):
    """Callers catch what they can handle, by type."""
    problem = {"code": "c", "detail": "d", "remedy": "r", "retryable": False}
    with client_of(lambda request: httpx2.Response(status, json=problem)) as client, pytest.raises(kind) as caught:
        client.record("r_1")
    assert (caught.value.code, caught.value.remedy, caught.value.retryable) == ("c", "r", False)


def busy(times: int, status: int = 429, retry_after: str = "7"):
    """A server that refuses so many times, and then answers; how often it was asked."""
    seen: list[str | None] = []

    def answer(request):
        seen.append(request.headers.get("idempotency-key"))
        if len(seen) > times:
            return httpx2.Response(201, json={"id": "r_1"})
        problem = {"code": "rate_limited", "detail": "too many", "remedy": "wait", "retryable": True}
        return httpx2.Response(status, json=problem, headers={"retry-after": retry_after})

    return answer, seen


def test_a_busy_server_is_asked_again_when_it_says():
    """Retry-After is obeyed, and the repeat has the same key: it makes no second run."""
    answer, seen = busy(2)
    waits: list[float] = []
    with Client("http://s", transport=httpx2.MockTransport(answer), backoff=Backoff(sleep=waits.append)) as client:
        assert client.start("hello") == {"id": "r_1"}
    assert waits == [7.0, 7.0]
    assert len(set(seen)) == 1


def test_a_busy_server_is_not_waited_for_longer_than_the_caller_allows():
    """Every wait has a limit: what would be beyond it is raised at once, with what the server asked."""
    for retry_after, busy_s in (("60", 30.0), ("1", 0.0)):
        answer, seen = busy(99, retry_after=retry_after)
        waits: list[float] = []
        backoff = Backoff(sleep=waits.append)
        with (
            Client("http://s", transport=httpx2.MockTransport(answer), backoff=backoff, busy_s=busy_s) as client,
            pytest.raises(RateLimited) as caught,
        ):
            client.start("hello")
        assert caught.value.retry_after_s == float(retry_after)
        assert (len(seen), waits) == (1, [])


def test_retry_after_may_be_a_date():
    """Proxies write dates."""
    answer, _ = busy(1, 503, email.utils.formatdate(time.time() + 20, usegmt=True))
    waits: list[float] = []
    with Client("http://s", transport=httpx2.MockTransport(answer), backoff=Backoff(sleep=waits.append)) as client:
        client.start("hello")
    assert 15 < waits[0] <= 20


class Speaks:
    """A socket that says the same to everybody, whatever is asked, and so on for ever if told."""

    def __init__(self, greeting: bytes, again: bytes = b"") -> None:
        self._greeting, self._again = greeting, again
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ending = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._ending.set()
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        self._listener.settimeout(0.05)
        with ExitStack() as taken:
            while not self._ending.is_set():
                with suppress(TimeoutError):
                    connection, _ = self._listener.accept()
                    self._speak(taken.enter_context(connection))

    def _speak(self, connection: socket.socket) -> None:
        self.asked += 1
        connection.settimeout(0.5)
        with suppress(OSError):
            connection.recv(65536)
            connection.sendall(self._greeting)
            while self._again and not self._ending.wait(0.02):
                connection.sendall(self._again)
            connection.shutdown(socket.SHUT_WR)


async def follow(form: str, url: str) -> None:
    backoff = Backoff(first_s=0.001)
    if form == "sync":
        with Client(url, backoff=backoff, silence_s=2) as client:
            list(client.follow("r_1"))
    else:
        async with AsyncClient(url, backoff=backoff, silence_s=2) as client:
            _ = [event async for event in client.follow("r_1")]


async def record(form: str, url: str) -> None:
    if form == "sync":
        with Client(url, answer_s=0.3) as client:
            client.record("r_1")
    else:
        async with AsyncClient(url, answer_s=0.3, connect_s=0.3) as client:
            await client.record("r_1")


SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
GARBAGE = {
    "mail": (b"220 mail.test ESMTP\r\n\r\n", ServerUnreachable, "no Holdfast server"),
    "web page": (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html>", ApiError, "check that the address"),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", ApiError, "answered 302"),
    "no json": (SSE + b"data: <html>\n\n", ServerUnreachable, "no Holdfast server"),
    "no event": (SSE + b'data: {"hello": "there"}\n\n', ServerUnreachable, "no Holdfast server"),
    "endless line": (SSE + b"data: " + b"x" * 700_000, ServerUnreachable, "no Holdfast server"),
    "deep": (SSE + b"data: " + b"[" * 200_000 + b"\n\n", ServerUnreachable, "no Holdfast server"),
    "not gzip": (
        SSE[:-2] + b"content-encoding: gzip\r\n\r\nhello",
        ServerUnreachable,
        "no Holdfast server",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("form", ["sync", "async"])
async def test_what_is_no_holdfast_server_is_named_after_three_connections(name, form):
    """Whoever follows at the wrong port learns it, in seconds, instead of watching a reconnect for ever."""
    greeting, kind, words = GARBAGE[name]
    with Speaks(greeting) as server, pytest.raises(kind, match=words):
        await follow(form, server.url)
    assert server.asked <= 3


@pytest.mark.parametrize("form", ["sync", "async"])
async def test_an_answer_that_drips_is_bounded_as_a_whole(form):
    """A byte now and then resets every read timeout; the answer has a limit all the same."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"
    began = time.monotonic()
    with Speaks(head, b" ") as server, pytest.raises(ServerUnreachable, match="in time"):
        await record(form, server.url)
    assert time.monotonic() - began < 5


def test_the_client_imports_nothing_of_the_server():
    """Who only follows runs waits for no agent library and no server to be imported."""
    heavy = "pydantic pydantic_ai openai starlette uvicorn redis structlog prometheus_client sqlite3 holdfast.engine"
    code = f"import sys, holdfast.client; print([m for m in {heavy.split()} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.strip() == "[]"
