"""The runs that one socket follows, each a reader of its log at an offset of its own.

    room -> open the log -> take its place -> ack -> frames, page by page -> the terminal event, or an error

At most one reading of a run goes out on a socket. Operations run side by side, so two for one run may finish opening
in any order: the one whose frame came last wins, whatever its turn. Each is answered, also the one that lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager

from holdfast.aio import Owner
from holdfast.domain.errors import HoldfastError, StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.gateway.events import Offset
from holdfast.gateway.gate import Gate
from holdfast.gateway.readers import PIECE_BYTES, pages
from holdfast.gateway.ws_frames import error_frame, frame
from holdfast.gateway.ws_views import Opened, Placed, View, view_of
from holdfast.gateway.ws_wire import SocketEnded, Wire

OPERATION_S = 30.0
GROUP_FRAMES = 64  # so many are written before others on the loop have their turn


class Following:
    """One reading of one run, from the frame that asked for it.

    Attributes:
        key: The run; None while a start has not made it.
        number: Of the frame; a later one wins.
        at: Event id of the last frame that was handed to the server.
        given_up: It was unsubscribed while it opened.
    """

    def __init__(self, number: int, key: RunKey | None, view: View) -> None:
        """Nothing is opened yet."""
        self.number = number
        self.key = key
        self.view = view
        self.at = ""
        self.given_up = False
        self.task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Not one more frame of it is written."""
        self.given_up = True
        if self.task is not None:
            self.task.cancel()


class Follower:
    """Opens readings, writes them out, and ends what was to end with them."""

    def __init__(self, gate: Gate, wire: Wire, owner: Owner) -> None:
        """Nothing is followed yet."""
        self.view = "log"
        self._gate = gate
        self._wire = wire
        self._owner = owner
        self._following: dict[str, Following] = {}
        self._opening: set[Following] = set()
        self._held: dict[RunKey, AbstractContextManager[None]] = {}  # runs that are cancelled with this socket

    @contextmanager
    def room(self, number: int, key: RunKey | None = None) -> Iterator[Following]:
        """Room for one more, kept while it is opened; raises overloaded where there is none."""
        most = self._gate.settings.ws_subscriptions
        again = key is not None and key.run in self._following
        if len(self._following) + len(self._opening) >= most + again:
            raise HoldfastError(
                "overloaded", f"ws_subscriptions = {most} is reached", remedy="unsubscribe, or open another socket"
            )
        found = Following(number, key, view_of(self.view))
        self._opening.add(found)
        try:
            yield found
        finally:
            self._opening.discard(found)

    async def follow(
        self, found: Following, key: RunKey, offset: Offset, answer: Callable[[Opened], Awaitable[None]] | None = None
    ) -> None:
        """Open the log at the offset, answer, and read it on in a task of the socket's.

        Raises:
            HoldfastError: It cannot be read; a reading that there was goes on.
            SocketEnded: There is nobody to read it to.
        """
        found.key = key
        try:
            async with within_limit():
                opened = await found.view.open(self._gate, key, offset)
        except HoldfastError:
            if key.run not in self._following:
                self._let_go(key)
            raise
        if self._wire.ended:
            raise SocketEnded
        before = self._following.get(key.run)
        if not found.given_up and (before is None or before.number < found.number):
            if before is not None:
                before.leave()
            self._following[key.run] = found
        if answer is not None:
            await answer(opened)
        if self._following.get(key.run) is found and not found.given_up:
            found.task = self._owner.spawn(self._read(found, key, opened), f"ws reader {key.run}")

    def leave(self, key: RunKey) -> Following | None:
        """Follow a run no longer; what was followed, or None."""
        for opening in self._opening:
            if opening.key == key:
                opening.leave()
        found = self._following.pop(key.run, None)
        if found is not None:
            found.leave()
        return found

    def holds(self, key: RunKey) -> bool:
        """Whether the run is cancelled with this socket."""
        return key in self._held

    def hold(self, key: RunKey) -> None:
        """The run is cancelled when this socket's client goes; if that was before this, now."""
        if self._wire.ended:
            if self._wire.left:
                self._gate.client_gone(key)
            return
        listening = self._gate.listening(key)
        listening.__enter__()
        self._held[key] = listening

    def end(self) -> None:
        """The socket has ended; what was to end with it ends, unless it was the server that closed it."""
        for key in list(self._held):
            self._let_go(key)
            if self._wire.left:
                self._gate.client_gone(key)

    def where(self) -> str:
        """From where to resume."""
        places = [f"{run} after {found.at}" for run, found in self._following.items() if found.at]
        return f"resume {', '.join(places)}" if places else "nothing to resume"

    async def _read(self, found: Following, key: RunKey, opened: Opened) -> None:
        """Write a log's frames until its terminal event, which ends the subscription."""
        try:
            if opened.resync:
                await self._wire.write([frame("resync", opened.resync)])
            await self._write(found, opened.frames)
            if opened.state.terminal and opened.at >= opened.head:
                return
            async with aclosing(pages(self._gate, key, opened.at)) as tail:
                async for page in tail:
                    if isinstance(page, HoldfastError):
                        await self._wire.write([error_frame(page, "subscribe", run=key.run)])
                        return
                    await self._write(found, found.view.page(page))
        except SocketEnded:
            return
        finally:
            if self._following.get(key.run) is found:
                del self._following[key.run]
                if not self._wire.ended:
                    self._let_go(key)

    async def _write(self, found: Following, placed: Sequence[Placed]) -> None:
        for group in groups(placed):
            await self._wire.write(_handing(found, group))
            if len(placed) > len(group):
                await asyncio.sleep(0)

    def _let_go(self, key: RunKey) -> None:
        listening = self._held.pop(key, None)
        if listening is not None:
            listening.__exit__(None, None, None)


@asynccontextmanager
async def within_limit() -> AsyncIterator[None]:
    """At most `OPERATION_S` for what the store is asked."""
    try:
        async with asyncio.timeout(OPERATION_S):
            yield
    except TimeoutError:
        raise StoreUnavailable(f"no answer within {OPERATION_S:.0f} s; it may be done yet") from None


def _handing(found: Following, placed: Sequence[Placed]) -> Iterator[bytes]:
    """Frame by frame, noting each as one that the reader has."""
    for item in placed:
        yield item.data
        found.at = str(item.offset)


def groups(placed: Sequence[Placed]) -> Iterator[Sequence[Placed]]:
    """Parts that are small enough to be written in one piece."""
    begin = size = 0
    for end, item in enumerate(placed):
        if end > begin and (end - begin >= GROUP_FRAMES or size + len(item.data) > PIECE_BYTES):
            yield placed[begin:end]
            begin, size = end, 0
        size += len(item.data)
    if placed:
        yield placed[begin:]
