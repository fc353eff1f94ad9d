"""One accepted WebSocket whose writes and whose end are bounded.

Frames are written in groups under one lock, so that many writers share a socket fairly. A group that is not taken
within `STUCK_S` ends the socket; so does whoever calls `end`. The first end decides the close code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from holdfast.gateway.readers import STUCK_S
from holdfast.gateway.ws_frames import close_reason

CLOSE_S = 1.0
_RESTARTING = 1012  # a server that ends reports it so to the app; no client sends it


class SocketEnded(Exception):
    """The socket is closing or gone; whoever was writing to it has nothing left to do."""


class Wire:
    """Reads, writes and closes.

    Attributes:
        left: The client went away, or made us close.
        closing: The close code and its reason, once it is to end.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, where: Callable[[], str]) -> None:
        """Nothing is accepted yet; `where` says from where a client that is cut off may resume."""
        self.left = False
        self.closing: tuple[int, str] | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._where = where
        self._bound = asyncio.timeout(None)
        self._serving = False
        self._writing = asyncio.Lock()

    @property
    def ended(self) -> bool:
        """Whether there is no point in writing."""
        return self.left or self.closing is not None

    async def accept(self, subprotocol: str | None) -> None:
        """Accept; OSError where the client has gone."""
        if (await self._receive())["type"] != "websocket.connect":  # it is there with the request
            raise OSError("the client has gone")
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})

    async def serve(self, body: Coroutine[Any, Any, None]) -> None:
        """Run `body` until it returns, or `end` is called, which cuts it short."""
        if self.ended:
            body.close()
            return
        try:
            async with self._bound:
                self._serving = True
                try:
                    await body
                finally:
                    self._serving = False
        except (TimeoutError, SocketEnded):
            if not self.ended:
                raise

    async def read(self) -> Message | None:
        """The next message, or None once the client has gone."""
        message = await self._receive()
        if message["type"] != "websocket.disconnect":
            return message
        self.left = self.left or message.get("code") != _RESTARTING
        return None

    async def write(self, frames: Iterable[bytes]) -> None:
        """Hand frames to the server, with no other between them; the next is asked for once one is taken.

        Raises:
            SocketEnded: It is closing, or its client has gone.
        """
        async with self._writing:
            if self.ended:
                raise SocketEnded
            try:
                async with asyncio.timeout(STUCK_S):
                    for data in frames:
                        await self._send({"type": "websocket.send", "text": data.decode()})
            except TimeoutError:
                self.end(1013, f"nothing was taken for {STUCK_S:.0f} s; {self._where()}")
                raise SocketEnded from None
            except OSError:  # what a server raises for a client that has gone
                self.left = True
                raise SocketEnded from None
            except RuntimeError:  # what it raises after a close
                if not self.ended:
                    raise
                raise SocketEnded from None

    def end(self, code: int, reason: str, *, left: bool = True) -> None:
        """Close with `code`; the first call decides. `left` is False where it is not the client's doing."""
        if self.closing is not None:
            return
        self.closing = (code, close_reason(reason))
        self.left = self.left or left
        if self._serving and not self._bound.expired():
            self._bound.reschedule(0)

    async def close(self) -> None:
        """Send the close frame, where that can be done yet."""
        code, reason = self.closing = self.closing or (1000, "")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError, TimeoutError):
            return  # it is closed already, or its client takes nothing, not even this
