"""Who is let in: Host and Origin, subprotocols, views, the limit on connections, and what is no WebSocket."""

import json
from pathlib import Path

import pytest

from tests.gateway.support import Raw, Site, site
from tests.ws.support import RawSocket, socket, upgrade

pytestmark = pytest.mark.timeout(60)


async def head(here: Site, path: str, *headers: str, host: str = "localhost") -> tuple[bytes, dict]:
    """The status line of an upgrade, and the problem it was refused with."""
    raw = await Raw.open(here.server.port)
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *upgrade(), *headers]
    await raw.send("\r\n".join(lines).encode() + b"\r\n\r\n")
    said, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    return said.split(b"\r\n")[0], json.loads(body)


@pytest.mark.parametrize(
    ("host", "origin"),
    [("evil.example", None), ("localhost", "https://evil.example"), ("localhost", "null"), ("", None)],
)
async def test_a_foreign_page_gets_no_socket(here: Site, host: str, origin: str | None) -> None:
    """Browsers let any page open a WebSocket to any server: the server is the one who has to look."""
    status, problem = await head(here, "/api/ws", *([] if origin is None else [f"Origin: {origin}"]), host=host)
    assert (status.split()[1], problem["code"]) == (b"403", "forbidden_origin")
    assert "http_server" not in here.lines.getvalue()  # who is refused writes no error into the log


async def test_a_local_page_gets_one(here: Site) -> None:
    """A page on this machine may, from whatever port."""
    async with socket(here.url, origin="http://localhost:5173") as client:
        assert client.ready["subject"] == "local"


async def test_our_subprotocol_is_selected_and_a_token_is_never_said_again(here: Site) -> None:
    """A token in a response would end up in the logs of every proxy on the way."""
    async with socket(here.url, subprotocols=["bearer.s3cret", "holdfast.v1"]) as client:
        assert client.ws.subprotocol == "holdfast.v1"
        assert "s3cret" not in str(client.ws.response.headers)
    raw = await Raw.open(here.server.port)
    await raw.get("/api/ws", *upgrade(), "Sec-WebSocket-Protocol: bearer.s3cret, graphql-ws")
    assert b"ec-websocket-protocol" not in await raw.until(b"\r\n\r\n")
    raw.leave()
    assert "s3cret" not in here.lines.getvalue()


async def test_an_authorization_header_means_nothing_without_keys(here: Site) -> None:
    """As over HTTP: clients send one, and there is nobody to check it."""
    async with socket(here.url, additional_headers={"Authorization": "Bearer x"}) as client:
        assert (await client.ask("ping"))["op"] == "pong"


async def test_a_view_that_there_is_not_is_refused_with_its_names(here: Site) -> None:
    """A close code and a reason: a browser sees nothing else of a refusal."""
    client = await RawSocket.open(here.server.port, "?view=x")
    code, reason = await client.closed()
    assert (code, reason) == (1008, "invalid_request: view='x' is none of log, agent")


async def test_there_is_no_socket_elsewhere(here: Site) -> None:
    """A problem with the path that there is."""
    status, problem = await head(here, "/api/runs")
    assert (status.split()[1], problem["code"]) == (b"404", "not_found")
    assert "/api/ws" in problem["detail"]


async def test_a_plain_get_is_told_to_upgrade(here: Site) -> None:
    """426 and the protocol to upgrade to, not silence."""
    got = await here.http.get("/api/ws")
    assert (got.status_code, got.headers["upgrade"], got.json()["code"]) == (426, "websocket", "upgrade_required")


async def test_sockets_count_as_connections(tmp_path: Path) -> None:
    """The limit is one for all; whoever is over it is told, and who is in stays in."""
    async with site(tmp_path, connections=2) as here, socket(here.url) as client:
        run = await here.run()  # a connection that is kept
        status, problem = await head(here, "/api/ws")
        assert (status.split()[1], problem["code"]) == (b"503", "overloaded")
        assert (await client.ask("subscribe", run=run["id"]))["op"] == "ack"


async def test_a_server_that_takes_no_runs_says_so_in_ready(here: Site) -> None:
    """Document 1: connected, authenticated, and no agent behind it. Here the first frame says what is missing."""

    async def missing() -> dict:
        return {"ready": False, "parts": {"worker": {"ok": False, "why": "it has ended"}}}

    here.ready = missing
    async with socket(here.url) as client:
        assert (client.ready["takes_runs"], client.ready["why"]) == (False, "worker: it has ended")
    here.agents.clear()
    async with socket(here.url) as client:
        assert (await client.ask("start", input="x"))["code"] == "not_ready"
