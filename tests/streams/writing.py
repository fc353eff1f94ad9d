"""The write side that the conformance suite needs, which Holdfast has not: it makes logs in memory.

What is read goes through the real gateway, over a real socket; only the log behind it is a stand-in, because the log of
a real run begins with run.created and cannot be written by a test. A text is kept as one JSON string.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.gateway import Server, create_app
from holdfast.gateway.durable_streams import Offset
from holdfast.ports.store import Page, Status
from holdfast.telemetry import Log

PREFIX = "/v1/stream/"


class Stream:
    """One log."""

    def __init__(self, content_type: str) -> None:
        self.content_type = content_type
        self.events: list[bytes] = []
        self.closed = False
        self.grown = asyncio.Event()

    def add(self, body: bytes) -> None:
        """Append a request's body: JSON as its messages, anything else as one string."""
        if self.content_type == "application/json":
            found = msgspec.json.decode(body)
            self.events += [msgspec.json.encode(each) for each in (found if isinstance(found, list) else [found])]
        elif body:
            self.events.append(msgspec.json.encode(body.decode(errors="replace")))
        self.wake()

    def wake(self) -> None:
        """Let every reader look again."""
        self.grown.set()
        self.grown = asyncio.Event()

    @property
    def offset(self) -> str:
        return str(Offset(len(self.events), 1 if self.events else 0))


class Logs:
    """Has of `Sessions` what the read side asks for."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}

    def follow_list(self, tenant: str) -> Any:
        """Nobody asks for it here."""
        raise AssertionError(f"the list of {tenant} was asked for")

    async def read(self, key: RunKey, after: int, limit: int, epoch: int | None = None) -> Page:
        """See Sessions."""
        stream = self.streams.get(key.run)
        if stream is None:
            raise HoldfastError("unknown_run", f"no run {key.run}")
        events, head = stream.events[after : after + limit], len(stream.events)
        state = State.COMPLETED if stream.closed else State.RUNNING
        return Page(Status.OK, events, [1] * len(events), after + 1, head, min(head, 1), state)

    async def tail(self, key: RunKey, after: int) -> AsyncGenerator[Page, None]:
        """See Sessions."""
        while True:
            grown = self.streams[key.run].grown
            page = await self.read(key, after, 500)
            yield page
            after += len(page.events)
            if page.state.terminal and after >= page.head:
                return
            if after >= page.head:
                await asyncio.wait([waiting := asyncio.ensure_future(grown.wait())], timeout=0.5)
                waiting.cancel()

    async def health(self) -> dict[str, Any]:
        """Of no interest here."""
        return {}

    async def reports(self) -> list[Any]:
        """Of no interest here."""
        return []


class Writing:
    """The gateway, with the suite's paths in front of it."""

    def __init__(self, app: Any, logs: Logs) -> None:
        self._app = app
        self._logs = logs

    def __getattr__(self, name: str) -> Any:
        """Everything else that a server asks of its app."""
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Write here, read there."""
        if not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        name = hashlib.sha256(scope["path"].encode()).hexdigest()[:40]
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            path = f"/streams/runs/{name}"
            await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)
            return
        body = await Request(scope, receive).body()
        await self._write(name, scope["method"], Headers(scope=scope), body)(scope, receive, send)

    def _write(self, name: str, method: str, headers: Headers, body: bytes) -> Response:
        streams = self._logs.streams
        stream = streams.get(name)
        kind = headers.get("content-type", "application/octet-stream").split(";")[0].lower()
        closes = headers.get("stream-closed") == "true"
        status = 204
        if method == "PUT" and stream is None:
            stream, status = streams.setdefault(name, Stream(kind)), 201
            stream.add(body) if body else None
        elif method == "PUT" and stream is not None:
            return Response(None, 200 if (stream.content_type, stream.closed) == (kind, closes) else 409)
        elif stream is None:
            return Response(None, 404)
        elif method == "DELETE":
            del streams[name]
            return Response(None, 204)
        elif stream.closed and body:
            return Response(None, 409, {"Stream-Closed": "true", "Stream-Next-Offset": stream.offset})
        elif body:
            stream.add(body)
        stream.closed = stream.closed or closes
        stream.wake()
        said = {"Stream-Next-Offset": stream.offset, "Content-Type": stream.content_type, "Location": PREFIX + name}
        return Response(None, status, {**said, **({"Stream-Closed": "true"} if stream.closed else {})})


async def _ready() -> dict[str, Any]:
    return {"ready": True, "parts": {}}


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The address of a gateway whose logs can be written."""
    logs, settings, log = Logs(), Settings(keepalive_s=1), Log(stream=io.StringIO())
    app = create_app(logs, settings, log, version={"version": "0"}, ready=_ready)  # type: ignore[arg-type]
    server = Server(Writing(app, logs), "127.0.0.1", 0, connections=1000, log=log)  # type: ignore[arg-type]
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop(0.5)
