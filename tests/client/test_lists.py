"""The list of runs, followed by the two clients alike."""

from __future__ import annotations

import json

import httpx2
import pytest

from holdfast.client import AsyncClient, Backoff, Client, Connection, ServerUnreachable, Unauthorized

NO_WAIT = Backoff(first_s=1e-6, max_s=1e-6, attempts=3)
RUN = {"id": "r_1", "state": "queued"}


def stream(*frames: tuple[str, object]) -> httpx2.Response:
    text = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in frames)
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, text="retry: 1000\n\n" + text)


class Server:
    """Answers in order, the last for ever."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(f"{request.method} {request.url.raw_path.decode()}")
        assert request.headers["accept"] == "text/event-stream"
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return httpx2.Response(found.status_code, headers=found.headers, content=found.content)


def script() -> Server:
    return Server(
        stream(("runs", {"runs": []}), ("of a later version", {}), ("run", RUN)),
        stream(("unavailable", {"detail": "no disk"})),
        stream(("runs", {"runs": [RUN]}), ("forgotten", {"id": "r_1", "session": "s"})),
    )


CHANGES = [
    {"type": "runs", "runs": []},
    {"type": "run", **RUN},
    {"type": "runs", "runs": [RUN]},
    {"type": "forgotten", "id": "r_1", "session": "s"},
]


def test_each_connection_begins_with_the_list() -> None:
    """Whatever was missed between two connections is in it: a list has no gap."""
    server, heard = script(), list[Connection]()
    with Client("http://x", transport=httpx2.MockTransport(server), backoff=NO_WAIT) as client:
        with client.follow_runs(session="s", on_state=heard.append) as runs:
            assert [next(runs) for _ in CHANGES] == CHANGES
            assert runs.connection.state == "live"
        assert runs.connection.state == "closed"
    assert server.asked == ["GET /api/events?session=s"] * 3
    assert [c.cause for c in heard if c.state == "reconnecting"] == ["the server closed the list", "no disk"]


async def test_the_asynchronous_client_does_the_same() -> None:
    """One set of rules, two ways to wait."""
    server = script()
    async with (
        AsyncClient("http://x", transport=httpx2.MockTransport(server), backoff=NO_WAIT) as client,
        client.follow_runs() as runs,
    ):
        assert [await anext(runs) for _ in CHANGES] == CHANGES
    assert server.asked == ["GET /api/events"] * 3


def test_a_list_that_nobody_may_read_any_more_says_so() -> None:
    """A withdrawn key is no reason to come back for ever."""
    server = Server(
        stream(("unauthorized", {"detail": "withdrawn"})), httpx2.Response(401, json={"code": "unauthorized"})
    )
    client = Client("http://x", transport=httpx2.MockTransport(server), backoff=NO_WAIT)
    with client, pytest.raises(Unauthorized):
        list(client.follow_runs())


def test_a_server_that_sends_nothing_is_given_up() -> None:
    """P7: every retry has a count; only news begin it anew."""
    client = Client("http://x", transport=httpx2.MockTransport(Server(stream())), backoff=NO_WAIT)
    with client, pytest.raises(ServerUnreachable, match="the server closed the list"):
        list(client.follow_runs())
