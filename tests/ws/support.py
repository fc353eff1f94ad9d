"""Clients of the WebSocket: one that keeps the rules, and one that speaks bytes."""

import asyncio
import base64
import json
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.gateway.support import TERMINAL, Raw

LIMIT_S = 20.0  # for a machine that is busy; nothing here is a promise about time
AGENT_ENDS = {"agent_completed", "agent_failed", "agent_cancelled"}
ENDS = TERMINAL | AGENT_ENDS


class Client:
    """A WebSocket client that waits for nothing longer than LIMIT_S."""

    def __init__(self, ws: ClientConnection, ready: dict[str, Any]) -> None:
        self.ws = ws
        self.ready = ready
        self.seen: list[dict[str, Any]] = []  # every frame that was read
        self._number = 0

    async def send(self, op: str, **fields: Any) -> None:
        """Send a frame without an id."""
        await self.raw(json.dumps({"op": op, **fields}))

    async def raw(self, data: str | bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.ws.send(data)

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a frame and wait for its answer; the events that come meanwhile are in `seen`."""
        self._number += 1
        mine = f"q{self._number}"
        await self.send(op, id=mine, **fields)
        return await self.until(lambda f: f.get("id") == mine)

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            found = json.loads(await self.ws.recv())
        self.seen.append(found)
        return found

    async def until(self, fits: Any) -> dict[str, Any]:
        """The first frame that fits, from now on."""
        while True:
            found = await self.read()
            if fits(found):
                return found

    async def end_of(self, run: str) -> dict[str, Any]:
        """The terminal event of a run, read already or to come."""
        for found in self.seen:
            if is_end(found, run):
                return found
        return await self.until(lambda f: is_end(f, run))

    def events(self, run: str) -> list[dict[str, Any]]:
        """What was read of a run, as its log has it."""
        return [
            {k: v for k, v in f.items() if k not in ("op", "event_id")}
            for f in self.seen
            if f["op"] == "event" and run in (f.get("run"), f.get("run_id"))
        ]

    async def closed(self) -> tuple[int, str]:
        """Read to the end: its code and its reason."""
        try:
            while True:
                await self.read()
        except ConnectionClosed as error:
            return (error.rcvd.code, error.rcvd.reason) if error.rcvd else (1006, "")


def is_end(frame: dict[str, Any], run: str) -> bool:
    return frame.get("type") in ENDS and run in (frame.get("run"), frame.get("run_id"))


@asynccontextmanager
async def socket(url: str, query: str = "", **options: Any) -> AsyncIterator[Client]:
    """Connect, and have read `ready`."""
    where = url.replace("http://", "ws://") + "/api/ws" + query
    async with connect(where, open_timeout=LIMIT_S, close_timeout=1, proxy=None, **options) as ws:
        client = Client(ws, {})
        client.ready = await client.read()
        client.seen.clear()
        assert client.ready["op"] == "ready", client.ready
        yield client


def frame(data: bytes | str, opcode: int = 1, *, fin: bool = True, length: int | None = None) -> bytes:
    """A masked client frame; `length` lets its head promise more than there is."""
    body = data.encode() if isinstance(data, str) else data
    size = len(body) if length is None else length
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65_536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(body))


class RawSocket:
    """A WebSocket spoken by hand, over one TCP connection."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw

    @classmethod
    async def open(cls, port: int, query: str = "", *headers: str, limit: int = 65_536) -> "RawSocket":
        """Upgrade, and leave everything after the head unread."""
        raw = await Raw.open(port, limit=limit)
        await raw.get(f"/api/ws{query}", *upgrade(), *headers)
        head = await raw.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return cls(raw)

    async def read(self) -> tuple[int, bytes]:
        """One frame: opcode and payload."""
        async with asyncio.timeout(LIMIT_S):
            one, two = await self.raw.reader.readexactly(2)
            size = two & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.raw.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.raw.reader.readexactly(8))
            return one & 0x0F, await self.raw.reader.readexactly(size)

    async def json(self) -> dict[str, Any]:
        opcode, data = await self.read()
        assert opcode == 1, (opcode, data)
        return json.loads(data)

    async def closed(self) -> tuple[int, str]:
        """Read to the close frame."""
        while True:
            opcode, data = await self.read()
            if opcode == 8:
                return struct.unpack("!H", data[:2])[0], data[2:].decode()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.raw.send(data)


def upgrade() -> list[str]:
    key = base64.b64encode(os.urandom(16)).decode()
    return ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
