"""P10 and P7 over the WebSocket: who takes nothing, says garbage or vanishes costs little and hinders nobody."""

import asyncio
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from holdfast.domain.runs import State
from holdfast.testing import build
from tests.gateway.support import Site, site
from tests.ws.support import LIMIT_S, RawSocket, frame, socket

pytestmark = pytest.mark.timeout(60)

BIG = "x" * 20_000


def op(name: str, **fields: Any) -> bytes:
    return frame(json.dumps({"op": name, **fields}))


async def gone(here: Site) -> None:
    """No socket is open any more."""
    async with asyncio.timeout(LIMIT_S):
        while here.app.readers:
            await asyncio.sleep(0.02)


async def well(here: Site) -> None:
    """Another client is served as if nothing were the matter."""
    async with socket(here.url) as client:
        assert (await client.ask("ping"))["op"] == "pong"


async def rest(client: RawSocket) -> tuple[list[dict[str, Any]], int, str]:
    """Every frame that is still to be read, and the close."""
    found = []
    while True:
        opcode, data = await client.read()
        if opcode == 1:
            found.append(json.loads(data))
        elif opcode == 8:
            return found, struct.unpack("!H", data[:2])[0], data[2:].decode()


async def test_a_client_that_reads_nothing_costs_one_page_and_hinders_nobody(here: Site) -> None:
    """The run is written and ended, others read it whole, and the server holds one page of it for that client."""
    run = await here.run()
    holder = await here.claim()
    slow = await RawSocket.open(here.server.port, limit=1024)
    slow.raw.writer.transport.pause_reading()
    await slow.send(op("subscribe", run=run["id"]))
    async with socket(here.url, max_size=None) as one, socket(here.url, "?view=agent", max_size=None) as two:
        for client in (one, two):
            await client.ask("subscribe", run=run["id"])
        for _ in range(14):
            await holder.append(*[build.text(0, BIG) for _ in range(50)])  # 14 MB in all
        await here.complete(holder, "done")
        for client in (one, two):
            assert (await client.end_of(run["id"]))["output"] == "done"
            assert (await client.ask("ping"))["op"] == "pong"
        held = [c.transport.get_write_buffer_size() for c in here.server.connections]
        assert max(held) < 1_000_000, held
    slow.raw.writer.transport.resume_reading()
    seqs = []
    while not seqs or seqs[-1] < 703:
        found = await slow.json()
        seqs += [found["seq"]] if found["op"] == "event" else []
    assert seqs == list(range(1, 704))


async def test_a_client_that_takes_nothing_for_too_long_is_told_where_to_resume(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1013 after all that it was sent; with the place named there it has the rest, each event once."""
    monkeypatch.setattr("holdfast.gateway.ws_wire.STUCK_S", 0.3)
    run = await here.run()
    holder = await here.claim()
    slow = await RawSocket.open(here.server.port, limit=1024)
    slow.raw.writer.transport.pause_reading()
    await slow.send(op("subscribe", run=run["id"]))
    for _ in range(20):
        await holder.append(*[build.text(0, BIG) for _ in range(50)])
    await gone(here)
    assert (await here.store.get(holder.key)).state is State.RUNNING
    slow.raw.writer.transport.resume_reading()
    found, code, reason = await rest(slow)
    seqs = [f["seq"] for f in found if f["op"] == "event"]
    assert code == 1013
    place = re.fullmatch(rf"nothing was taken for 0 s; resume {run['id']} after (\d+-\d+)", reason)
    assert place, reason
    assert place[1].startswith(f"{seqs[-1]}-")
    await here.complete(holder)
    async with socket(here.url, max_size=None) as client:
        await client.ask("subscribe", run=run["id"], after=place[1])
        await client.end_of(run["id"])
        assert seqs + [e["seq"] for e in client.events(run["id"])] == list(range(1, 1004))


async def test_a_client_that_never_reads_even_its_close_is_dropped(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection and its buffer come back, although it never says a word."""
    monkeypatch.setattr("holdfast.gateway.ws_wire.STUCK_S", 0.2)
    monkeypatch.setattr("holdfast.gateway.ws_protocol.LINGER_S", 0.2)
    run = await here.run()
    holder = await here.claim()
    slow = await RawSocket.open(here.server.port, limit=1024)
    slow.raw.writer.transport.pause_reading()
    await slow.send(op("subscribe", run=run["id"]))
    for _ in range(20):
        await holder.append(*[build.text(0, BIG) for _ in range(50)])
    async with asyncio.timeout(LIMIT_S):
        while len(here.server.connections) > 1:  # the test's own HTTP connection
            await asyncio.sleep(0.02)
    assert here.app.readers == 0


async def test_a_client_that_reads_a_byte_at_a_time_has_what_it_read(here: Site) -> None:
    """It is as slow as it likes; the run ends and others are served meanwhile, and its bytes are right."""
    run = await here.run()
    holder = await here.claim()
    slow = await RawSocket.open(here.server.port, limit=1024)
    await slow.send(op("subscribe", run=run["id"]))
    await holder.say("hi")
    await here.complete(holder, "hi")
    await well(here)
    data = bytearray()
    for _ in range(3000):
        async with asyncio.timeout(LIMIT_S):
            data += await slow.raw.reader.read(1)
        if data.endswith(b"}") and b"run.completed" in data:
            break
    assert b'"seq":1' in data
    slow.raw.leave()


@pytest.mark.parametrize(
    ("sent", "code"), [(frame("no json"), 1007), (frame(b"\x00\x01", 2), 1003), (frame('{"op":"nope"}'), 1008)]
)
async def test_garbage_is_answered_and_much_of_it_ends_the_socket(here: Site, sent: bytes, code: int) -> None:
    """An error with a remedy for each bad frame; whoever goes on is closed with the code for it."""
    client = await RawSocket.open(here.server.port)
    assert (await client.json())["op"] == "ready"
    for _ in range(16):
        await client.send(sent)
        got = await client.json()
        assert (got["op"], got["code"]) == ("error", "invalid_request")
        assert "docs/protocol.md" in got["remedy"]
    await client.send(op("ping"))  # a good one between them forgives the others
    assert (await client.json())["op"] == "pong"
    await client.send(sent * 17)
    found, closed, reason = await rest(client)
    assert (len(found), closed) == (17, code)
    assert reason.startswith("17 bad frames: ")
    await well(here)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff\xff garbage", 1002),
        (frame(b"\xff\xfe", 1), 1007),
        (frame(b"", 1, length=9_000_000), 1009),
        (frame(b"x" * 50_000, 1, length=9_000_000), 1009),
        (frame(b"a" * 5_000_000, 1, fin=False) + frame(b"a" * 5_000_000, 0), 1009),
        (frame(b"", 1, fin=False) + frame(b"", 0, fin=False) * 2000, 1009),
        (frame(b"x", 0), 1002),
        (frame(b"x" * 126, 9), 1002),
    ],
    ids=[
        "noise",
        "not utf-8",
        "huge promise",
        "huge",
        "huge in parts",
        "endless parts",
        "a part of nothing",
        "big ping",
    ],
)
async def test_what_is_no_websocket_is_closed_with_its_code(here: Site, sent: bytes, code: int) -> None:
    """The client sees the code, although it goes on sending; nobody else notices."""
    client = await RawSocket.open(here.server.port)
    assert (await client.json())["op"] == "ready"
    await client.send(sent)
    assert (await client.closed())[0] == code
    await gone(here)
    await well(here)


async def test_a_message_that_trickles_is_given_up(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: a message has a time to be whole, as a request's body has."""
    monkeypatch.setattr("holdfast.gateway.ws_protocol.READ_S", 0.2)
    for part in (frame(b"x" * 10, length=1000), frame(b"x", fin=False), b"\x81"):
        client = await RawSocket.open(here.server.port)
        await client.json()
        await client.send(part)
        assert await client.closed() == (1008, "a message was not whole after 0 s")
    await gone(here)


async def test_an_idle_socket_is_left_alone(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole messages start no clock."""
    monkeypatch.setattr("holdfast.gateway.ws_protocol.READ_S", 0.1)
    async with socket(here.url) as client:
        for _ in range(3):
            assert (await client.ask("ping"))["op"] == "pong"
            await asyncio.sleep(0.15)


async def test_pings_without_reading_are_not_answered_without_end(here: Site) -> None:
    """A pong for each ping, and none is read: what is queued for them has a limit."""
    client = await RawSocket.open(here.server.port, limit=1024)
    await client.json()
    client.raw.writer.transport.pause_reading()
    many = frame(b"p" * 125, 9) * 2000
    try:
        async with asyncio.timeout(LIMIT_S):
            while here.app.readers:
                client.raw.writer.write(many)
                held = [c.transport.get_write_buffer_size() for c in here.server.connections]
                assert max(held, default=0) < 2_000_000
                await asyncio.sleep(0)
                if client.raw.writer.transport.get_write_buffer_size() > 4_000_000:
                    await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    await gone(here)


@pytest.mark.parametrize("at_once", [1, 200])
async def test_frames_that_are_not_read_make_nothing_pile_up(tmp_path: Path, at_once: int) -> None:
    """Operations without end, and no answer is read: the server stops reading, and holds its limit of them."""
    async with site(tmp_path, ws_operations=4) as here:
        run = await here.run("x" * 200_000)
        client = await RawSocket.open(here.server.port, limit=1024)
        await client.json()
        client.raw.writer.transport.pause_reading()
        before = len(asyncio.all_tasks())
        many = op("stop", run=run["id"]) * at_once
        stuck = last = 0
        async with asyncio.timeout(LIMIT_S):
            while stuck < 60:
                if client.raw.writer.transport.get_write_buffer_size() < 100_000:
                    client.raw.writer.write(many)
                await asyncio.sleep(0.005)
                assert len(asyncio.all_tasks()) - before < 12
                held = max(c.transport.get_write_buffer_size() for c in here.server.connections)
                assert held < 2_000_000
                stuck += held == last > 65_536
                last = held
        await well(here)
        client.raw.leave()
        await gone(here)


async def test_a_client_that_answers_no_ping_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half open: the connection stands, and nobody is at its other end. It is told 1013, and let go."""
    monkeypatch.setattr("holdfast.gateway.server.PING_TIMEOUT_S", 0.3)
    async with site(tmp_path, keepalive_s=0.1) as here:
        client = await RawSocket.open(here.server.port)
        await client.json()
        opcode, _ = await client.read()
        assert opcode == 9
        code, reason = await client.closed()
        assert (code, "resume" in reason) == (1013, True)
        await gone(here)


async def test_a_client_that_answers_pings_stays(tmp_path: Path) -> None:
    """A run may be silent for as long as it likes."""
    async with site(tmp_path, keepalive_s=0.05) as here, socket(here.url) as client:
        run = (await client.ask("start", input="x"))["run"]
        await asyncio.sleep(0.5)
        await here.complete(await here.claim())
        await client.end_of(run)
