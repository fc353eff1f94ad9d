"""A run's log as frames of a WebSocket, from an offset: as it is, or as the agent view.

Both are the same loop over the same pages. The agent view's frames depend on the whole log before them, so a reader
that resumes has it folded again from the first event up to its place; the log is the only state.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import decode_event, encode_json
from holdfast.domain.ids import EventId, RunKey
from holdfast.domain.runs import State
from holdfast.gateway.agent_view import AgentView, Frame
from holdfast.gateway.events import Offset, complete, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.ws_frames import event_frame
from holdfast.ports.store import Page

VIEWS = ("log", "agent")


class Placed(NamedTuple):
    """An encoded frame, and the offset that a reader has once it has it."""

    offset: EventId
    data: bytes


class Opened(msgspec.Struct, frozen=True):
    """Where a reading begins.

    Attributes:
        frames: The first ones.
        at: The seq after which the log is to be read on.
        state: Of the run.
        head: Of the log.
        epoch: Of the event at head.
        ended: Nothing is left for this reader, now or later.
        resync: The reader's offset is one that the log never had: said to it, before the log from its start.
    """

    frames: list[Placed]
    at: int
    state: State
    head: int
    epoch: int
    ended: bool
    resync: dict[str, Any] | None


class View(Protocol):
    """One reading of one log."""

    async def open(self, gate: Gate, key: RunKey, offset: Offset) -> Opened:
        """Find the reader's place, once, before any `page`."""
        ...

    def page(self, page: Page) -> list[Placed]:
        """The frames of the next page."""
        ...


def view_of(name: str) -> View:
    """A fresh reading in the view of that name."""
    return AgentReading() if name == "agent" else LogReading()


class LogReading:
    """The stored events."""

    async def open(self, gate: Gate, key: RunKey, offset: Offset) -> Opened:
        """The first page from `offset` on."""
        opening = await open_log(gate, key, offset)
        page = opening.page
        at = page.first + len(page.events) - 1
        return Opened(self.page(page), at, page.state, page.head, page.epoch, opening.nothing_left, opening.resync)

    def page(self, page: Page) -> list[Placed]:
        """A frame for each event."""
        ids = [EventId(seq, epoch) for seq, epoch in enumerate(page.epochs, page.first)]
        return [Placed(at, event_frame(at, data)) for at, data in zip(ids, page.events, strict=True)]


class AgentReading:
    """The agent view, whose offsets count its own frames; the epoch is that of the event a frame comes from."""

    def __init__(self) -> None:
        self._view = AgentView()

    async def open(self, gate: Gate, key: RunKey, offset: Offset) -> Opened:
        """Fold the log up to the frame that the reader has; what that event made beyond it comes first."""
        at = 0
        wanted = offset.id
        while True:
            page = await gate.sessions.read(key, at, 500)
            if wanted is None or wanted.seq == 0:
                return _opened(page, [], 0, ended=False, resync=None if wanted else _resync(key, offset, page))
            for data, epoch in zip(page.events, page.epochs, strict=True):
                made = self._view.feed(decode_event(data))
                at += 1
                if self._view.frames >= wanted.seq:
                    beyond = [_placed(frame, epoch) for frame in made if frame["seq"] > wanted.seq]
                    if wanted.epoch not in (None, epoch):
                        return self._again(key, offset, page)
                    ended = not beyond and page.state.terminal and at >= page.head
                    return _opened(page, beyond, at, ended=ended)
            if not page.events or complete(page) or at >= page.head:
                return self._again(key, offset, page)

    def page(self, page: Page) -> list[Placed]:
        """The frames that a page's events make."""
        return [
            _placed(frame, epoch)
            for data, epoch in zip(page.events, page.epochs, strict=True)
            for frame in self._view.feed(decode_event(data))
        ]

    def _again(self, key: RunKey, offset: Offset, page: Page) -> Opened:
        self._view = AgentView()
        return _opened(page, [], 0, ended=False, resync=_resync(key, offset, page))


def _opened(page: Page, frames: list[Placed], at: int, *, ended: bool, resync: dict[str, Any] | None = None) -> Opened:
    return Opened(frames, at, page.state, page.head, page.epoch, ended, resync)


def _resync(key: RunKey, offset: Offset, page: Page) -> dict[str, Any]:
    return {"run": key.run, "asked": offset.asked, "head": page.head, "epoch": page.epoch}


def _placed(frame: Frame, epoch: int) -> Placed:
    offset = EventId(frame["seq"], epoch)
    return Placed(offset, encode_json({"op": "event", "event_id": str(offset), **frame}))


def check_view(name: str) -> str:
    """A view that there is, or invalid_request."""
    if name not in VIEWS:
        raise HoldfastError("invalid_request", f"view={name[:64]!r} is none of {', '.join(VIEWS)}")
    return name
