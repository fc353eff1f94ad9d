"""A client that sees every byte, and waits that end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from holdfast.rehearsal import RehearsalServer

LIMIT_S = 5.0


def ask(*lines: str, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """The body of a request whose user message is these lines."""
    return {"messages": [{"role": "user", "content": "\n".join(lines)}], "stream": stream, **fields}


@dataclass
class Response:
    """A response with its framing undone, and whether the framing was complete."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool
    arrivals: list[float]  # when each read returned, from the request on

    @property
    def events(self) -> list[str]:
        """The data of each server-sent event."""
        frames = self.body.decode().split("\n\n")
        return [frame.removeprefix("data: ") for frame in frames if frame.startswith("data: ")]

    @property
    def comments(self) -> int:
        return sum(frame.startswith(":") for frame in self.body.decode().split("\n\n"))

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events that are JSON."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def deltas(self) -> list[dict[str, Any]]:
        return [chunk["choices"][0]["delta"] for chunk in self.chunks if chunk.get("choices")]

    @property
    def tokens(self) -> list[str]:
        """The content of each chunk that has one."""
        return [delta["content"] for delta in self.deltas if delta.get("content")]

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def finish(self) -> str | None:
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in self.chunks if chunk.get("choices")]
        return next((reason for reason in reasons if reason), None)

    @property
    def done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def connected(server: RehearsalServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def request_bytes(method: str, path: str, body: bytes) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: rehearsal\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


async def request(server: RehearsalServer, method: str, path: str, body: bytes = b"") -> Response:
    """Send one request and read to the end of the connection."""
    async with asyncio.timeout(LIMIT_S), connected(server) as (reader, writer):
        started = time.monotonic()
        writer.write(request_bytes(method, path, body))
        raw, arrivals = b"", []
        while piece := await reader.read(1 << 20):
            raw += piece
            arrivals.append(time.monotonic() - started)
    return parse_response(raw, arrivals)


async def post(server: RehearsalServer, body: dict[str, Any]) -> Response:
    return await request(server, "POST", "/v1/chat/completions", json.dumps(body).encode())


async def play(server: RehearsalServer, *lines: str, **fields: Any) -> Response:
    """Ask for a script and read the whole response."""
    return await post(server, ask(*lines, **fields))


async def stats(server: RehearsalServer, query: str = "") -> dict[str, Any]:
    return (await request(server, "GET", "/_stats" + query)).json


async def eventually(server: RehearsalServer, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The counters, once they are as expected; the limit is short because seeing a client leave is the promise."""
    async with asyncio.timeout(2):
        while not holds(seen := await stats(server)):
            await asyncio.sleep(0.005)
    return seen


def parse_response(raw: bytes, arrivals: list[float]) -> Response:
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body, complete = unchunk(rest)
    else:
        body, complete = rest, len(rest) == int(headers["content-length"])
    return Response(int(first.split()[1]), headers, body, complete, arrivals)


def unchunk(rest: bytes) -> tuple[bytes, bool]:
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(parts), True
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(parts), False
