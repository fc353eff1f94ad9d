"""One request and its response on the wire: every wait also waits for the client to go away.

A rehearsal sleeps in many places; a client that leaves must be seen at once in each of them. So one owned task reads
the connection from the moment the body is complete, and every wait races against what it finds. What ends an exchange
early is `Gone`, raised here and caught once, in `app`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any

from holdfast.aio import Owner, settle

__all__ = ["BodyTooLarge", "BodyTooSlow", "Exchange", "Gone", "Receive", "Send", "Who"]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

BODY_BYTES_MAX = 8 * 1024 * 1024
BODY_S_MAX = 60.0
WRITE_S_MAX = 60.0
WATCH_END_S_MAX = 1.0
MARK: Header = (b"x-holdfast-rehearsal", b"1")


class Who(Enum):
    """Who ended an exchange before its answer was complete."""

    CLIENT = "client"
    SERVER = "server"


class Gone(Exception):
    """The exchange was ended early; nothing more can be sent."""


class BodyTooLarge(Exception):
    """The request's body is beyond the limit."""


class BodyTooSlow(Exception):
    """The request's body did not arrive in time."""


class Exchange:
    """Reads one request and writes its response, as long as both sides are there."""

    def __init__(self, receive: Receive, send: Send, owner: Owner) -> None:
        """Take the two ends of an ASGI connection and the owner of the task that watches it."""
        self.prompt: str | None = None  # of a completion, once it is known
        self._receive = receive
        self._send = send
        self._owner = owner
        self._watcher: asyncio.Task[None] | None = None
        self._gone: asyncio.Future[Who] = asyncio.get_running_loop().create_future()
        self._sent_at = time.monotonic()
        self._gone_at = self._sent_at

    @property
    def gone(self) -> Who | None:
        """Who ended the exchange early, if somebody did."""
        return self._gone.result() if self._gone.done() else None

    @property
    def silence_s(self) -> float:
        """From the last byte sent (the request, if none was) to the moment the exchange was ended early."""
        return max(0.0, self._gone_at - self._sent_at)

    def end(self, who: Who) -> None:
        """End the exchange early; the first one counts."""
        if not self._gone.done():
            self._gone_at = time.monotonic()
            self._gone.set_result(who)

    async def read_body(self) -> bytes:
        """Read the whole body, then watch the connection for its end.

        Raises:
            BodyTooLarge: It has more than 8 MiB; the rest is left unread.
            BodyTooSlow: It did not arrive within a minute.
            Gone: The client left before it was complete.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S_MAX):
                more = True
                while more:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        self.end(Who.CLIENT)
                        raise Gone
                    body += message.get("body", b"")
                    if len(body) > BODY_BYTES_MAX:
                        raise BodyTooLarge
                    more = message.get("more_body", False)
        except TimeoutError:
            raise BodyTooSlow from None
        self._watcher = self._owner.spawn(self._watch(), "rehearsal watcher")
        return bytes(body)

    async def wait_until(self, due: float) -> None:
        """Sleep until `due` on the monotonic clock, or until the exchange is ended, which raises Gone."""
        while (delay := due - time.monotonic()) > 0 and not self._gone.done():
            await asyncio.wait({self._gone}, timeout=delay)
        self.check()

    async def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the exchange is ended, which raises Gone."""
        await self.wait_until(time.monotonic() + seconds)

    def check(self) -> None:
        """Raise Gone if the exchange was ended early."""
        if self._gone.done():
            raise Gone

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        """Send status and headers."""
        await self._put({"type": "http.response.start", "status": status, "headers": [*headers, MARK]})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body; with `more=False` the last one."""
        await self._put({"type": "http.response.body", "body": body, "more_body": more})

    async def close(self) -> None:
        """Stop watching. A response that is not complete is cut off by the server when the handler returns."""
        if self._watcher is not None:
            self._watcher.cancel()
            await settle({self._watcher}, WATCH_END_S_MAX)

    async def _put(self, message: dict[str, Any]) -> None:
        self.check()
        try:
            async with asyncio.timeout(WRITE_S_MAX):
                await self._send(message)
        except TimeoutError:  # a client that reads nothing holds nothing for ever
            self.end(Who.CLIENT)
            raise Gone from None
        self._sent_at = time.monotonic()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(Who.CLIENT)
