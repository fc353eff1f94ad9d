"""The server's own bounds: who is served, how many, how large, how long."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from holdfast.gateway import BindError, Server
from tests.gateway.support import SSE, Raw, Site, frames, site


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", None, 200),
        ("127.0.0.1:8484", None, 200),
        ("[::1]:8484", None, 200),
        ("app.localhost:80", "http://localhost:5173", 200),
        ("127.9.9.9", "http://127.0.0.1", 200),
        ("evil.example", None, 403),
        ("localhost.evil.example", None, 403),
        ("10.0.0.7", None, 403),
        ("", None, 403),
        ("[::1", None, 403),
        ("localhost", "https://evil.example", 403),
        ("localhost", "null", 403),
        ("localhost", "", 403),
        ("127.0.0.1@evil.example", None, 403),
    ],
)
async def test_without_keys_only_loopback_names_are_served(
    here: Site, host: str, origin: str | None, status: int
) -> None:
    """A page of another site, or one that rebound its name to us, cannot run agents here."""
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    got = await here.http.get("/api/runs", headers=headers)
    assert got.status_code == status
    assert status == 200 or got.json()["code"] == "forbidden_origin"


async def test_an_authorization_header_means_nothing_without_keys(here: Site) -> None:
    """Clients always send one; there is nobody to check it."""
    assert (await here.http.get("/api/runs", headers={"Authorization": "Bearer x"})).status_code == 200


async def test_the_probes_answer_within_a_second_whatever_the_parts_do(here: Site) -> None:
    """An orchestrator must be able to tell a dead process from a dead database."""

    async def hangs() -> dict:
        await asyncio.sleep(60)
        return {}

    here.ready = hangs
    loop = asyncio.get_running_loop()
    began = loop.time()
    live, ready, up, health = await asyncio.gather(
        *(here.http.get(path) for path in ("/livez", "/readyz", "/startupz", "/health"))
    )
    assert loop.time() - began < 1.0
    assert (live.status_code, up.status_code, health.status_code) == (200, 200, 200)
    assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
    assert "did not answer" in ready.json()["detail"]
    assert health.json()["status"] == "degraded"


async def test_readyz_says_which_part_is_missing_and_recovers(here: Site) -> None:
    """A reason for each part; a check that raises is one too."""

    async def missing() -> dict:
        return {"ready": False, "parts": {"worker": {"ok": False, "why": "it has ended"}, "store": {"ok": True}}}

    async def raises() -> dict:
        raise OSError("no disk")

    good = here.ready
    here.ready = missing
    got = await here.http.get("/readyz")
    assert (got.status_code, got.json()["detail"]) == (503, "worker: it has ended")
    here.ready = raises
    assert "no disk" in (await here.http.get("/readyz")).json()["detail"]
    here.ready = good
    assert (await here.http.get("/readyz")).json()["ready"] is True
    here.app.close_readers()
    assert "draining" in (await here.http.get("/readyz")).json()["detail"]


async def test_connections_are_capped_and_probes_still_get_through(tmp_path: Path) -> None:
    """503 in our shape, and /livez does not fail because clients are many."""
    async with site(tmp_path, connections=3) as here:
        run = await here.run()
        readers = [await Raw.open(here.server.port) for _ in range(2)]  # and the one that made the run
        for raw in readers:
            await raw.get(f"/api/runs/{run['id']}/events", "Accept: text/event-stream")
        one_more = await Raw.open(here.server.port)
        await one_more.get("/api/runs")
        answered = await one_more.rest()
        assert b"503" in answered.split(b"\r\n")[0]
        assert b'"code":"overloaded"' in answered
        assert b"retry-after: 1" in answered.lower()
        probe = await Raw.open(here.server.port)
        await probe.get("/livez", "Connection: close")
        assert (await probe.rest()).startswith(b"HTTP/1.1 200")
        for raw in (*readers, one_more, probe):
            raw.leave()


async def test_a_request_that_is_not_http_is_answered_400(here: Site) -> None:
    """Garbage ends its own connection and nothing else."""
    raw = await Raw.open(here.server.port)
    await raw.send(b"\x16\x03\x01 hello\r\n\r\n")
    assert (await raw.rest()).startswith(b"HTTP/1.1 400")
    assert (await here.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 90_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 90_000])
async def test_a_head_without_an_end_is_refused(here: Site, head: bytes) -> None:
    """Nobody makes the server remember more than 64 KiB before a request is whole."""
    raw = await Raw.open(here.server.port)
    await raw.send(head[:50_000])
    await asyncio.sleep(0.05)
    await raw.send(head[50_000:])
    assert (await raw.rest()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"FROB /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n", "no method of HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "not TLS"),
        (b"GET /api/runs HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"GET /api/runs HTTP/1.1\r\nA b: c\r\n\r\n", "Invalid header token"),
        (b"POST /api/runs HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "this is no request"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 90_000, "head is over 65536 bytes"),
    ],
    ids=["method", "tls", "version", "header", "two lengths", "head"],
)
async def test_what_is_no_request_is_told_what_was_wrong(here: Site, sent: bytes, says: str) -> None:
    """P8: a line of text without a code told neither a client's code nor its author anything."""
    raw = await Raw.open(here.server.port)
    await raw.send(sent)
    head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), head
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    problem = json.loads(body)
    assert (problem["code"], problem["status"], problem["retryable"]) == ("malformed_request", 400, False)
    assert says in problem["detail"], problem
    assert problem["remedy"]


async def test_what_is_no_request_under_v1_has_openais_shape(here: Site) -> None:
    """An OpenAI client shows `error.message`, and nothing of another shape."""
    raw = await Raw.open(here.server.port)
    await raw.send(b"POST /v1/chat/completions HTTP/1.1\r\nA b: c\r\n\r\n")
    body = (await raw.rest()).partition(b"\r\n\r\n")[2]
    assert json.loads(body)["error"]["code"] == "malformed_request"


async def test_garbage_behind_a_request_is_not_answered_within_its_stream(here: Site) -> None:
    """P3: the 400 was written into the middle of the stream that its client was reading, as if it were of the log."""
    run = (await here.run())["id"]
    raw = await Raw.open(here.server.port)
    await raw.get(f"/api/runs/{run}/events", "Accept: text/event-stream")
    await raw.until(b"event: run.created")
    await raw.send(b"\x16\x03\x01 hello\r\n\r\n")
    assert b"HTTP/1.1 400" not in await raw.rest()


async def test_a_client_that_never_finishes_its_head_is_dropped(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowloris: a connection that asks for nothing is not kept."""
    monkeypatch.setattr("holdfast.gateway.server.HEAD_S", 0.2)
    silent, slow = await Raw.open(here.server.port), await Raw.open(here.server.port)
    await slow.send(b"GET / HTTP/1.1\r\nHost: local")
    for raw in (silent, slow):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await raw.until(b"\n")


async def test_a_body_that_trickles_is_given_up(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: a request has a time to be whole."""
    monkeypatch.setattr("holdfast.gateway.bodies.READ_S", 0.2)
    raw = await Raw.open(here.server.port)
    await raw.get("/api/runs", "Content-Length: 100", method="POST", body=b"")
    await raw.send(b'{"in')
    assert b" 422 " in await raw.until(b"\r\n")
    raw.leave()


async def test_a_busy_port_is_a_typed_error_with_a_remedy(here: Site) -> None:
    """The operator reads what to do, not a traceback."""
    second = Server(here.app, "127.0.0.1", here.server.port, connections=10, log=here.log)
    with pytest.raises(BindError, match=re.compile(f"{here.server.port}")) as caught:
        await second.start()
    assert "--port" in caught.value.remedy
    await second.stop()


async def test_a_name_that_is_not_here_is_a_typed_error_too(here: Site) -> None:
    """192.0.2.1 is nobody's."""
    with pytest.raises(BindError):
        await Server(here.app, "192.0.2.1", 0, connections=10, log=here.log).start()


async def test_stop_closes_streams_at_once_and_they_resume_elsewhere(tmp_path: Path) -> None:
    """A deploy costs a reader a reconnect; no byte is lost and nothing twice."""
    async with site(tmp_path) as here:
        run = await here.run()
        holder = await here.claim()
        path = f"/api/runs/{run['id']}/events"
        loop = asyncio.get_running_loop()
        async with here.http.stream("GET", path, headers=SSE) as response:
            text = response.aiter_text()
            seen = await anext(text)
            began = loop.time()
            stopping = asyncio.ensure_future(here.server.stop(3.0))
            async for more in text:
                seen += more
            assert loop.time() - began < 0.5
            await stopping
        assert loop.time() - began < 3.0
        assert (await here.store.get(holder.key)).stopping is None
        await here.complete(holder)
        async with site_again(here) as again:
            last = frames(seen)[-1].id
            rest = await again.http.get(path, headers={**SSE, "Last-Event-ID": last})
            assert [f.json["seq"] for f in (*frames(seen), *frames(rest.text))] == [1, 2, 3]


def site_again(here: Site):
    """Another gateway on the same store."""
    import contextlib

    import httpx2

    from holdfast.gateway import create_app

    @contextlib.asynccontextmanager
    async def serve():
        app = create_app(here.sessions, here.settings, here.log, version={"version": "0"}, ready=here.ready)
        server = Server(app, "127.0.0.1", 0, connections=10, log=here.log)
        await server.start()
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=5) as http:
                here.http = http
                yield here
        finally:
            await server.stop(0.5)

    return serve()


async def test_headers_say_nothing_about_the_server(here: Site) -> None:
    """No Server header; nothing to look up."""
    assert "server" not in (await here.http.get("/livez")).headers


async def test_nothing_is_left_after_many_readers_came_and_went(here: Site) -> None:
    """P7: tasks and readers return to where they were."""
    run = await here.run()
    path = f"/api/runs/{run['id']}/events"
    await asyncio.sleep(0.05)
    before = len(asyncio.all_tasks())
    for _ in range(20):
        raws = [await Raw.open(here.server.port) for _ in range(5)]
        for raw in raws:
            await raw.get(path, "Accept: text/event-stream")
            await raw.until(b"run.created")
            raw.leave()
    async with asyncio.timeout(2):
        while here.app.readers or len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)


async def test_a_stream_for_http_1_0_has_no_chunks_and_ends_with_its_connection(here: Site) -> None:
    """That version knows no chunks: their sizes would stand between the events."""
    run = await here.run()
    await here.complete(await here.claim(), "done")
    path = f"/api/runs/{run['id']}/events"
    raw = await Raw.open(here.server.port)
    await raw.send(f"GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n".encode())
    head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.decode() == (await here.http.get(path, headers=SSE)).text
    for old in (
        f"GET {path}?after=99-1",
        "HEAD /api/runs",
        "GET /livez",
        f"GET {path}?after={len(frames(body.decode()))}",
    ):
        raw = await Raw.open(here.server.port)
        await raw.send(f"{old} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
        assert head.split()[1] in (b"200", b"204")
        assert b"chunked" not in head
    assert "http_server" not in here.lines.getvalue()


@pytest.mark.parametrize(
    ("request_line", "host", "status"),
    [
        ("GET /livez HTTP/1.0", "", b"200"),
        ("OPTIONS /livez HTTP/1.0", "", b"405"),
        ("GET /api/runs HTTP/1.0", "", b"200"),
        ("GET /livez HTTP/1.0", "Host: evil.example\r\n", b"403"),
        ("GET /livez HTTP/1.0", "Host:\r\n", b"403"),
        ("GET /api/runs HTTP/1.0", "Origin: http://evil.example\r\n", b"403"),
        ("GET /livez HTTP/1.1", "", b"403"),
    ],
)
async def test_http_1_0_needs_no_host(here: Site, request_line: str, host: str, status: bytes) -> None:
    """Health checks of proxies speak it, and that version has no such header; what a browser sends always has one."""
    raw = await Raw.open(here.server.port)
    await raw.send(f"{request_line}\r\n{host}Connection: close\r\n\r\n".encode())
    assert (await raw.rest()).split()[1] == status
