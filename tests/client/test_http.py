"""Calls: what is sent, what is repeated, what their failures say."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx2
import pytest

from holdfast.client import ApiError, Backoff, Client, ServerUnreachable


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
