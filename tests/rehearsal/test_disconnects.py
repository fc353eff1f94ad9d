"""A client that leaves is seen at once, whatever the answer is doing at that moment."""

import asyncio
import json
from typing import Any

import pytest

from holdfast.rehearsal import RehearsalServer
from tests.rehearsal.support import LIMIT_S, ask, connected, eventually, play, request_bytes, stats

PHASES = {
    "before headers": ("!slow_headers for=60", b""),
    "before the first token": ("!first_token delay=60", b"\r\n\r\n"),
    "between tokens": ("!tokens n=1000 rate=5", b"t1 "),
    "between words": ("!say " + "word " * 1000, b"word"),
    "thinking": ("!think n=1000 rate=5", b"r1 "),
    "stalled": ("!stall after=2 for=60 rate=1000", b"t2 "),
    "comments": ("!comments after=1 for=60", b": rehearsal"),
    "after a bad chunk": ("!bad_json after=1\n!first_token delay=60", b"t1 "),
}


async def _begin(server: RehearsalServer, body: dict[str, Any], until: bytes, writer: Any, reader: Any) -> None:
    """Send a request and read until the phase is reached, as the client and the counters see it."""
    writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(body).encode()))
    async with asyncio.timeout(LIMIT_S):
        if until:
            await reader.readuntil(until)
    await eventually(server, lambda seen: seen["open"] == 1)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
async def test_disconnect_is_seen_at_once_in_every_phase(server: RehearsalServer, phase: str, abrupt: bool) -> None:
    """Whether Stop closed the upstream connection is measured here, so this must not be the slow part."""
    script, until = PHASES[phase]
    async with connected(server) as (reader, writer):
        await _begin(server, ask(script), until, writer, reader)
        left_at = asyncio.get_running_loop().time()
        if abrupt:
            writer.transport.abort()
        else:
            writer.close()
        seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert asyncio.get_running_loop().time() - left_at < 1
    assert (seen["client_disconnects"], seen["finished"], seen["requests"]) == (1, 0, 1)
    assert 0 <= seen["last_disconnect_ms"] < 1000


async def test_disconnect_is_seen_while_a_body_is_composed(server: RehearsalServer) -> None:
    """A client that does not stream leaves before it has a byte."""
    async with connected(server) as (reader, writer):
        await _begin(server, ask("!tokens n=1000 rate=5", stream=False), b"", writer, reader)
        writer.close()
        seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert seen["client_disconnects"] == 1


async def test_disconnect_is_seen_in_the_middle_of_the_request(server: RehearsalServer) -> None:
    """A client may be gone before it has asked."""
    async with connected(server) as (_, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask("!say hi")).encode())[:-5])
        await eventually(server, lambda seen: seen["open"] == 1)
        writer.close()
        seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert seen["client_disconnects"] == 1


async def test_disconnect_ms_counts_from_the_last_byte_sent(server: RehearsalServer) -> None:
    """A client that waits in a stall and leaves is as late as its wait."""
    async with connected(server) as (reader, writer):
        await _begin(server, ask("!stall after=1 for=60"), b"t1 ", writer, reader)
        await asyncio.sleep(0.2)
        writer.close()
        seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert 190 < seen["last_disconnect_ms"] < 1000


async def test_client_that_reads_nothing_does_not_disturb_another(server: RehearsalServer) -> None:
    """A full socket holds up its own answer and nobody else's; when it leaves, its answer ends."""
    async with connected(server) as (_, writer):
        body = json.dumps(ask("!tokens n=1000000 rate=1000000")).encode()
        writer.transport.pause_reading()
        writer.write(request_bytes("POST", "/v1/chat/completions", body))
        await eventually(server, lambda seen: seen["open"] == 1)
        assert (await play(server, "!tokens n=100 rate=1000")).done
        assert (await stats(server))["open"] == 1
        writer.transport.abort()
        seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert (seen["client_disconnects"], seen["finished"]) == (1, 1)


async def test_hundred_clients_leave_at_once_and_nothing_is_left(server: RehearsalServer) -> None:
    """Counts and tasks return to where they were."""
    tasks = len(asyncio.all_tasks())
    writers = []
    for _ in range(100):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask("!stall for=60")).encode()))
        writers.append(writer)
    await eventually(server, lambda seen: seen["open"] == 100)
    for writer in writers:
        writer.close()
    seen = await eventually(server, lambda seen: seen["open"] == 0)
    assert (seen["requests"], seen["client_disconnects"]) == (100, 100)
    async with asyncio.timeout(2):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.005)
