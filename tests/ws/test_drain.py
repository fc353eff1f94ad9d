"""The server ends: every socket is told, and goes on elsewhere from where it was."""

import asyncio
import json
from pathlib import Path

import pytest

from holdfast.testing import build
from tests.gateway.support import Site, site
from tests.gateway.test_server import site_again
from tests.ws.support import RawSocket, frame, socket

pytestmark = pytest.mark.timeout(60)


async def test_a_drain_closes_1013_and_says_from_where_to_resume(tmp_path: Path) -> None:
    """A deploy costs a client a reconnect: no event is lost, none comes twice, and its run goes on."""
    async with site(tmp_path) as here:
        async with socket(here.url) as client, socket(here.url, "?view=agent") as other:
            run = (await client.ask("start", input="x", on_disconnect="cancel"))["run"]
            await other.ask("subscribe", run=run)
            holder = await here.claim()
            await holder.say("hi")
            await client.until(lambda f: f.get("seq") == 3)
            await other.until(lambda f: f.get("seq") == 2)
            loop = asyncio.get_running_loop()
            began = loop.time()
            stopping = asyncio.ensure_future(here.server.stop(3.0))
            code, reason = await client.closed()
            assert (code, reason) == (1013, f"draining; resume {run} after 3-1")
            assert (await other.closed())[0] == 1013
            await stopping
            assert loop.time() - began < 6.0
        assert (await here.store.get(holder.key)).stopping is None  # it was not the client that left
        await here.complete(holder, "x")
        async with site_again(here) as again, socket(str(again.http.base_url)) as later:
            await later.ask("subscribe", run=run, after=reason.rpartition(" ")[2])
            await later.end_of(run)
            assert [e["seq"] for e in client.events(run) + later.events(run)] == [1, 2, 3, 4]


async def test_a_drain_waits_for_no_client(tmp_path: Path) -> None:
    """One that reads nothing and one that is silent hold the server up no longer than its grace."""
    async with site(tmp_path) as here:
        run = await here.run()
        holder = await here.claim()
        slow = await RawSocket.open(here.server.port, limit=1024)
        slow.raw.writer.transport.pause_reading()
        await slow.send(frame(json.dumps({"op": "subscribe", "run": run["id"]})))
        for _ in range(10):
            await holder.append(*[build.text(0, "x" * 20_000) for _ in range(50)])
        await RawSocket.open(here.server.port)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(20):
            await here.server.stop(1.0)
        assert loop.time() - began < 10.0
        assert here.app.readers == 0


async def test_a_drain_survives_clients_that_leave_at_that_moment(tmp_path: Path) -> None:
    """What it writes to them is answered by a reset, before it has read their end: no failure of the server's."""
    async with site(tmp_path) as here:
        clients = [await RawSocket.open(here.server.port) for _ in range(40)]
        for client in clients:
            await client.json()
        for client in clients:
            client.raw.leave()
        await asyncio.sleep(0)  # they are closed, and the server has not looked
        for connection in here.server.connections:
            connection.shutdown()
        await here.server.stop(1.0)
        assert "task_failed" not in here.lines.getvalue()


async def test_a_socket_that_comes_while_the_server_ends_is_told_so(here: Site) -> None:
    """Accepted by a server that is closing: 1013 at once, and no silence."""
    here.app.close_readers()
    client = await RawSocket.open(here.server.port)
    assert await client.closed() == (1013, "draining; nothing to resume")
