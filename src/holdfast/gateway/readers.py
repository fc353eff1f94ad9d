"""Open streaming responses: each ends with its log, its client, its socket's patience, or the server.

Why one `asyncio.timeout` around a whole response: the client may go away, or the server may close, while the loop
waits for an event, for the store, or for a full socket. Rescheduling that one bound to now ends all three at once,
without a task per page.

A reader is held by nothing but its own socket: a page is read, encoded and written in pieces, and the next page is
read only when the ASGI server has taken the last piece, which it does below its own high-water mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from types import TracebackType

from starlette.types import Receive, Scope, Send

from holdfast.domain.errors import HoldfastError, StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.gateway.access import Identity
from holdfast.gateway.gate import Gate
from holdfast.ports.store import Page, Status

PIECE_BYTES = 262_144
STUCK_S = 120.0  # a client that takes not one piece in this time is cut off; it resumes where it was
OUTAGE_PAUSE_S = 0.5
ABORT = "holdfast.abort"  # the ASGI extension by which our server drops a connection with unsent bytes


class Reader:
    """One streaming response, as a context: the body runs until it ends, or something outside ends it.

    Attributes:
        gone: The client left, or took nothing for too long, before the body ended.
    """

    def __init__(
        self,
        gate: Gate,
        scope: Scope,
        receive: Receive,
        on_gone: Callable[[], None] | None = None,
        *,
        resumes: bool = True,
    ) -> None:
        """Nothing is watched yet.

        Args:
            gate: Knows every open reader, so that the server can close them.
            scope: Of the request.
            receive: Of the request, whose body has been read.
            on_gone: Called once if the reader is gone.
            resumes: Whether what is cut can be read on elsewhere; a server that is told to end waits for the others.
        """
        self.gone = False
        self.resumes = resumes
        self._closed = False
        self._gate = gate
        self._scope = scope
        self._receive = receive
        self._on_gone = on_gone
        self._bound = asyncio.timeout(None)
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reader:
        """Watch the client from now on."""
        await self._bound.__aenter__()
        self._gate.attach(self)
        self._watcher = self._gate.owner.spawn(self._watch(), "reader")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Tell an end from outside, which is no error, from a failure of the body, which is."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._gate.detach(self)
        try:
            await self._bound.__aexit__(kind, error, trace)
        except TimeoutError:
            pass
        else:
            return False
        if not self._closed:
            self._cut()
        if self.gone and self._on_gone is not None:
            self._on_gone()
        return True

    def close(self) -> None:
        """End the response now; a second call changes nothing."""
        self._closed = True
        if not self._bound.expired():
            self._bound.reschedule(0)

    async def write(self, send: Send, body: bytes) -> None:
        """Hand `body` to the server in pieces, each within `STUCK_S`."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(body), PIECE_BYTES):
            self._limit(loop.time() + STUCK_S)
            piece = body[start : start + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._limit(None)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.close()

    def _limit(self, when: float | None) -> None:
        if not self._closed:  # else this would undo the close
            self._bound.reschedule(when)

    def _cut(self) -> None:
        """The time for one piece is over: drop the connection with what it has not taken."""
        self.gone = True
        abort = self._scope.get("extensions", {}).get(ABORT, {}).get("abort")
        if abort is not None:
            abort()


async def pages(
    gate: Gate, key: RunKey, after: int, who: Identity | None = None
) -> AsyncGenerator[Page | HoldfastError, None]:
    """Pages after `after`, live, until the terminal event, or the error that ends the reading.

    While the store does not answer, empty pages come, for at most store_outage_s. With `who`, the reading ends when its
    token does, or when its key is withdrawn: pages come each second, and no later than that it is seen.
    """
    loop = asyncio.get_running_loop()
    failing_since: float | None = None
    while True:
        try:
            async with aclosing(gate.sessions.tail(key, after)) as tail:
                async for page in tail:
                    failing_since = None
                    if who is not None and (ended := gate.access.ended(who)):
                        yield HoldfastError("unauthorized", ended, run=key.run)
                        return
                    if page.status is not Status.OK:
                        yield HoldfastError("gone", f"the log of run {key.run} was deleted", run=key.run)
                        return
                    if page.resync:
                        yield HoldfastError("internal", f"the log of run {key.run} lost events up to {after}")
                        return
                    after = page.first + len(page.events) - 1
                    yield page
            return
        except StoreUnavailable as error:
            failing_since = failing_since or loop.time()
            if loop.time() - failing_since > gate.settings.store_outage_s:
                yield error
                return
            yield Page(Status.OK, [], [], after + 1, after, 0, State.RUNNING)
            await asyncio.sleep(OUTAGE_PAUSE_S)
