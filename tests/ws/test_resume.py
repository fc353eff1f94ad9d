"""P3 over the WebSocket: from any offset, in either view, exactly the missing suffix."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.domain.events import EventType
from holdfast.testing import build
from holdfast.testing.rig import Holder
from tests.gateway.support import Site, site
from tests.system.support import full
from tests.ws.support import ENDS, LIMIT_S, RawSocket, frame, socket

pytestmark = pytest.mark.timeout(60)

CUTS = full(300, 25)


@pytest.fixture(scope="module")
def talk() -> list[build.Draft]:
    """A run with text, two tools, one of which is left open, and an attempt that is discarded."""
    return [
        (EventType.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 1}),
        *(build.text(0, f"w{n} ") for n in range(12)),
        build.tool_called("c1"),
        build.tool_finished("c1", "r"),
        build.tool_called("c2"),
        build.discarded(parts=[0], calls=["c2"]),
        *(build.text(1, f"ünï{n} ") for n in range(12)),
        build.tool_called("c3"),
        build.tool_called("c4"),
    ]


async def ended(here: Site, talk: list[build.Draft]) -> str:
    """A whole log; its last event makes three frames of the agent view."""
    run = await here.run()
    holder = await here.claim()
    await holder.append(*talk)
    await holder.finish()
    return run["id"]


@pytest.mark.parametrize("view", ["log", "agent"])
async def test_every_offset_gives_exactly_the_missing_suffix(here: Site, talk: list[build.Draft], view: str) -> None:
    """Whoever resumes after N, by seq or by event id, gets N+1 and all that follows, byte for byte."""
    run = await ended(here, talk)
    async with socket(here.url, f"?view={view}") as client:
        await client.ask("subscribe", run=run)
        await client.end_of(run)
        whole = [f for f in client.seen if f["op"] == "event"]
        assert [f["seq"] for f in whole] == list(range(1, len(whole) + 1))
        for n, last in enumerate(whole, 1):
            for after in (n, str(n), last["event_id"]):
                client.seen.clear()
                ack = await client.ask("subscribe", run=run, after=after)
                assert ack["ended"] is (n == len(whole))
                if n < len(whole):
                    await client.end_of(run)
                assert [f for f in client.seen if f["op"] == "event"] == whole[n:]
        client.seen.clear()
        await client.ask("ping")
        assert [f["op"] for f in client.seen] == ["pong"]


@pytest.mark.parametrize("view", ["log", "agent"])
@pytest.mark.parametrize("after", [1000, "1000", "3-9", "1000-1"])
async def test_an_offset_that_the_log_never_had_is_said_and_read_from_the_start(
    here: Site, talk: list[build.Draft], view: str, after: int | str
) -> None:
    """As over SSE: resync says what was asked and what is there, then the log follows from its start."""
    run = await ended(here, talk)
    async with socket(here.url, f"?view={view}") as client:
        ack = await client.ask("subscribe", run=run, after=after)
        assert ack["ended"] is False
        resync = await client.read()
        assert (resync["op"], resync["run"], resync["asked"]) == ("resync", run, str(after))
        assert resync["head"] == ack["head"]
        await client.end_of(run)
        assert client.events(run)[0]["seq"] == 1


async def write(here: Site, talk: list[build.Draft]) -> None:
    """A worker that takes its time."""
    holder: Holder = await here.claim()
    for draft in talk:
        await holder.append(draft)
        await asyncio.sleep(0.003)
    await holder.finish()


async def cut(here: Site, run: str, view: str, after: str, size: int) -> AsyncIterator[dict[str, Any]]:
    """Subscribe, take `size` bytes of what comes, hang up without a word: the whole frames among them."""
    client = await RawSocket.open(here.server.port, f"?view={view}")
    await client.send(frame(json.dumps({"op": "subscribe", "run": run, "after": after})))
    data = bytearray()
    while len(data) < size:
        async with asyncio.timeout(LIMIT_S):
            more = await client.raw.reader.read(size - len(data))
        if not more:
            break
        data += more
        if b'"type":"run.c' in data or b'"type":"agent_c' in data:
            break
    client.raw.leave()
    reader = asyncio.StreamReader()
    reader.feed_data(bytes(data))
    reader.feed_eof()
    client.raw.reader = reader
    while True:
        try:
            yield await client.json()
        except asyncio.IncompleteReadError:
            return


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("view", ["log", "agent"])
async def test_a_socket_cut_at_any_byte_is_resumed_without_a_gap_or_a_repeat(
    tmp_path: Path, talk: list[build.Draft], view: str
) -> None:
    """Hung up on anywhere, a live run too: the frames of all connections are those of one whole reading."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    cuts = 0
    async with site(tmp_path) as here:
        while cuts < CUTS:
            run = (await here.run())["id"]
            writing = asyncio.ensure_future(write(here, talk))
            got: list[dict[str, Any]] = []
            after = "0"
            while not got or got[-1]["type"] not in ENDS:
                cuts += 1
                async for found in cut(here, run, view, after, chance.randrange(1, 6000)):
                    assert found["op"] in ("ready", "ack", "event"), (seed, found["op"], found.get("detail"), after)
                    if found["op"] == "event":
                        got.append(found)
                        after = found["event_id"]
            await writing
            async with socket(here.url, f"?view={view}") as client:
                await client.ask("subscribe", run=run)
                await client.end_of(run)
                assert [f for f in client.seen if f["op"] == "event"] == got, seed
