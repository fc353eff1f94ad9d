"""Requests to an ASGI app of this process, without a socket, whose answers are read as they are written.

httpx2's own ASGI transport collects an answer before it hands it over: of a run's stream nothing would be seen before
its end. Here the app hands over one piece at a time, and is held up by who reads, as it would be by a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2
from starlette.types import ASGIApp, Message

from holdfast.aio import Owner, wait_event

_POLL_S: Final = 1.0
_CLOSE_S: Final = 1.0


class InsideTransport(httpx2.AsyncBaseTransport):
    """Hands requests to `app`."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the app; it belongs to the loop on which it is asked."""
        self._app = app
        self._owner = Owner(lambda name, error: None)  # what a request raises is raised to who asked

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Ask; returns once the answer begins."""
        exchange = _Exchange(request, await request.aread())
        _ = self._owner.spawn(exchange.serve(self._app), "inside request")
        try:
            return await exchange.begun()
        except BaseException:
            await exchange.aclose()
            raise

    async def aclose(self) -> None:
        """End what is still asked."""
        await self._owner.close(_CLOSE_S)


class _Exchange(httpx2.AsyncByteStream):
    """One request and its answer, whose body it is, too. At most one piece of that waits to be read."""

    def __init__(self, request: httpx2.Request, body: bytes) -> None:
        self._request = request
        self._body: bytes | None = body
        self._head, self._readable, self._taken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._left = asyncio.Event()
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._piece: bytes | None = None
        self._over = False

    async def serve(self, app: ASGIApp) -> None:
        """Let the app answer."""
        url = self._request.url
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.split(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": (url.host, url.port),
            "extensions": {},
        }
        try:
            await app(scope, self._receive, self._send)
        finally:
            for event in (self._head, self._readable, self._left):
                event.set()

    async def begun(self) -> httpx2.Response:
        """The answer, once its head is there."""
        await self._until(self._head, lambda: False)
        if not self._status:
            raise httpx2.RemoteProtocolError("the app ended without an answer", request=self._request)
        return httpx2.Response(self._status, headers=self._headers, stream=self, request=self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, as it is written."""
        while True:
            await self._until(self._readable, lambda: self._over)
            piece, self._piece = self._piece, None
            if piece is None:
                break
            self._readable.clear()
            self._taken.set()
            yield piece
        if not self._over:
            raise httpx2.RemoteProtocolError("the app ended in the middle of its answer", request=self._request)

    async def aclose(self) -> None:
        """Leave: the app hears that its client has gone, as a server would say it."""
        self._left.set()
        self._taken.set()

    async def _until(self, event: asyncio.Event, over: Callable[[], bool]) -> None:
        """Wait for what the app does next, within the request's own limit on that."""
        limit_s: float | None = self._request.extensions.get("timeout", {}).get("read")
        until = None if limit_s is None else asyncio.get_running_loop().time() + limit_s
        while not over() and not await wait_event(event, _POLL_S if limit_s is None else min(_POLL_S, limit_s)):
            if until is not None and asyncio.get_running_loop().time() >= until:
                raise httpx2.ReadTimeout(f"nothing was answered for {limit_s:g} s", request=self._request)

    async def _receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        while not await wait_event(self._left, _POLL_S):
            pass
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
            self._head.set()
            return
        if body := message.get("body", b""):
            while self._piece is not None and not self._left.is_set():
                self._taken.clear()
                _ = await wait_event(self._taken, _POLL_S)
            self._piece = body
            self._readable.set()
        if not message.get("more_body", False):
            self._over = True
            self._readable.set()
