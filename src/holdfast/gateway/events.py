"""Reading a log over HTTP: one loop, with an encoder per form.

The stored bytes are what every reader gets, from whatever offset and in whatever form; `Encoder` adds the frame.
`LogStream` is the loop: SSE, NDJSON and chat completions differ in their encoder only.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import encode_json
from holdfast.domain.ids import EventId, RunKey, parse_event_id
from holdfast.domain.runs import State
from holdfast.gateway.access import Identity, identified
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import document
from holdfast.gateway.readers import Reader, pages
from holdfast.gateway.requests import JSON_TYPE, run_key, wanted, whole_number
from holdfast.gateway.routes import Answer, Operation, Query
from holdfast.ports.store import Page

PAGE_EVENTS_MAX = 500
RETRY_MS = 1000
OFFSET = r"^\d{1,15}(-\d{1,15})?$"
STREAM_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


class Offset(msgspec.Struct, frozen=True):
    """Where a reader says it is: the text it sent, and what that means; `id` None names no event of any log."""

    asked: str = "0"
    id: EventId | None = EventId(0, None)


class Opening(msgspec.Struct, frozen=True):
    """The first page of a reading, and whether the reader's offset was one that the log never had."""

    page: Page
    resync: dict[str, Any] | None

    @property
    def nothing_left(self) -> bool:
        """Whether the reader already has the terminal event."""
        return self.resync is None and not self.page.events and complete(self.page)


class EventPage(msgspec.Struct):
    """A part of a log; `resync` is there where `after` named an event this log never had."""

    events: list[dict[str, Any]]
    head: int
    state: State
    resync: dict[str, Any] | None = None


class Encoder(Protocol):
    """One form of a log on the wire. Pure: what it writes follows from the pages it was given."""

    media_type: str
    keepalive: bytes

    def begin(self) -> bytes:
        """What stands before the first event."""
        ...

    def ended(self) -> bool:
        """Whether it has nothing more to say, whatever the log goes on to hold."""
        ...

    def page(self, page: Page) -> bytes:
        """The events of a page."""
        ...

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """What is said about the log and is not in it: resync, gone, unavailable, unauthorized."""
        ...


class _Typed(msgspec.Struct):
    type: str


_types = msgspec.json.Decoder(_Typed)


class SSE:
    """Server-sent events with the stored bytes as data."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def begin(self) -> bytes:
        """How long an EventSource waits before it comes back."""
        return b"retry: %d\n\n" % RETRY_MS

    def ended(self) -> bool:
        """Only the log's end is its end."""
        return False

    def page(self, page: Page) -> bytes:
        """`id`, `event` and `data` of each event."""
        return b"".join(
            b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (seq, epoch, _types.decode(data).type.encode(), data)
            for seq, (data, epoch) in enumerate(zip(page.events, page.epochs, strict=True), page.first)
        )

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """An event without an id, so that it moves no reader's offset."""
        return self.framed(kind, encode_json(fields))

    def framed(self, kind: str, data: bytes) -> bytes:
        """A JSON object as an event without an id."""
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class NDJSON:
    """One event a line; a keepalive is an empty line."""

    media_type = "application/x-ndjson"
    keepalive = b"\n"

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def ended(self) -> bool:
        """Only the log's end is its end."""
        return False

    def page(self, page: Page) -> bytes:
        """The stored bytes, a line each."""
        return b"".join(b"%b\n" % data for data in page.events)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """An object with a type and no seq."""
        return self.framed(kind, encode_json(fields))

    def framed(self, kind: str, data: bytes) -> bytes:
        """A JSON object, which is not empty, with its type first."""
        return b'{"type":"%b",%b\n' % (kind.encode(), data[1:])


def complete(page: Page) -> bool:
    """Whether a reader that has this page has the terminal event."""
    return page.state.terminal and page.first + len(page.events) - 1 >= page.head


def read_offset(request: Request) -> Offset:
    """The reader's offset: Last-Event-ID before `after` before the beginning.

    Raises:
        HoldfastError: invalid_offset, for an `after` that is neither a seq nor an event id. A Last-Event-ID that is
            neither is one this log never had: an EventSource that got a 422 would never come back.
    """
    last = request.headers.get("last-event-id", "")
    if last:
        return Offset(last[:128], parse_event_id(last) if last.isascii() else None)
    asked = request.query_params.get("after")
    if asked is None:
        return Offset()
    found = parse_event_id(asked) if asked.isascii() else None
    if found is None:
        raise HoldfastError("invalid_offset", f"after={asked[:64]!r} is neither a seq nor an event id")
    return Offset(asked, found)


async def open_log(gate: Gate, key: RunKey, offset: Offset, limit: int = PAGE_EVENTS_MAX) -> Opening:
    """The first page from `offset` on, or from the start where the log never had that event."""
    at = offset.id
    if at is not None:
        page = await gate.sessions.read(key, at.seq, limit, at.epoch)
        if not page.resync and at.seq <= page.head:
            return Opening(page, None)
    page = await gate.sessions.read(key, 0, limit)
    said = {"run": key.run, "asked": offset.asked, "head": page.head, "epoch": page.epoch}
    return Opening(page, said)


CLOSING = HoldfastError("not_ready", "the server is closing; ask again", retry_after_s=1)


class LogStream(Response):
    """A streaming response that follows one log until its terminal event."""

    def __init__(
        self,
        gate: Gate,
        key: RunKey,
        opening: Opening,
        encoder: Encoder,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        listens: bool = False,
        around: AbstractContextManager[None] | None = None,
        resumes: bool = True,
    ) -> None:
        """Take what is to be read, and how it is written.

        Args:
            gate: The gateway's context.
            key: The run.
            opening: Its first page.
            encoder: The form on the wire.
            status: 200, or 201 for the request that made the run.
            headers: Further headers.
            listens: The run is stopped if the client leaves, or takes nothing for too long, before the end; or
                if this process ends, once its lease as a listener is over.
            around: Entered while it is read; instead of what `listens` does.
            resumes: Whether its protocol lets a client read on elsewhere; else it is told that it was cut off.
        """
        self.status_code = status
        sent = {
            "content-type": f"{encoder.media_type}; charset=utf-8",
            **STREAM_HEADERS,
            "X-Run-Id": key.run,
            **(headers or {}),
        }
        self.raw_headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()]
        self._gate = gate
        self._key = key
        self._opening = opening
        self._encoder = encoder
        self._listens = listens
        self._around = around
        self._resumes = resumes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response; returns when the log ended, the client left or the server closes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        whole = False
        with self._around or (self._gate.listening(self._key) if self._listens else nullcontext()):
            on_gone, resumes = self._gone if self._listens else None, self._resumes and not self._listens
            async with Reader(self._gate, scope, receive, on_gone, resumes=resumes) as reader:
                await self._pump(reader, send, identified(scope))
                whole = True
        if not reader.gone:
            cut = b"" if whole or self._resumes else self._encoder.notice("unavailable", document(CLOSING))
            await send({"type": "http.response.body", "body": cut})

    async def _pump(self, reader: Reader, send: Send, who: Identity | None) -> None:
        encoder, page, resync = self._encoder, self._opening.page, self._opening.resync
        said = encoder.notice("resync", resync) if resync else b""
        await reader.write(send, encoder.begin() + said + encoder.page(page))
        if complete(page) or self._said_enough():
            return
        clock = asyncio.get_running_loop().time
        written = clock()
        async with aclosing(pages(self._gate, self._key, page.first + len(page.events) - 1, who)) as tail:
            async for found in tail:
                if isinstance(found, HoldfastError):
                    kind = found.code if found.code in ("gone", "unauthorized") else "unavailable"
                    await reader.write(send, encoder.notice(kind, document(found)))
                    return
                body = encoder.page(found) if found.events else b""
                if not body and clock() - written >= self._gate.settings.keepalive_s:
                    body = encoder.keepalive
                if body:
                    await reader.write(send, body)
                    written = clock()
                if not complete(found) and self._said_enough():
                    return

    def _said_enough(self) -> bool:
        """Whether the encoder ended before its log did; then nobody reads the run on, as if its client had left."""
        if self._encoder.ended() and self._listens:
            self._gone()
        return self._encoder.ended()

    def _gone(self) -> None:
        self._gate.client_gone(self._key)


async def read_events(gate: Gate, request: Request) -> Response:
    """GET /api/runs/{run}/events in the form that Accept asks for."""
    key = run_key(request)
    offset = read_offset(request)
    form = wanted(request, (SSE.media_type, NDJSON.media_type, JSON_TYPE))
    if form == JSON_TYPE:
        limit = whole_number(request, "limit", PAGE_EVENTS_MAX, PAGE_EVENTS_MAX)
        return _as_json(key, await open_log(gate, key, offset, limit))
    opening = await open_log(gate, key, offset)
    if opening.nothing_left:
        return Response(status_code=204, headers={**STREAM_HEADERS, "X-Run-Id": key.run})
    return LogStream(gate, key, opening, SSE() if form == SSE.media_type else NDJSON())


def _as_json(key: RunKey, opening: Opening) -> Response:
    page = opening.page
    rest = {"head": page.head, "state": page.state}
    if opening.resync:
        rest["resync"] = opening.resync
    body = b'{"events":[%b],%b' % (b",".join(page.events), encode_json(rest)[1:])
    return Response(body, 200, {**STREAM_HEADERS, "X-Run-Id": key.run}, JSON_TYPE)


OPERATIONS = (
    Operation(
        "GET",
        "/api/runs/{run}/events",
        read_events,
        "Read a run's log from an offset, live until its terminal event",
        answers=(
            Answer(
                200, "The log, in the form that Accept asks for", EventPage, text=(SSE.media_type, NDJSON.media_type)
            ),
            Answer(204, "The reader already has the terminal event"),
        ),
        query=(
            Query("after", "A seq or an event id; events after it are sent", {"type": "string", "pattern": OFFSET}),
            Query("limit", "application/json only: at most this many events", {"type": "integer", "minimum": 1}),
        ),
        headers=(Query("Last-Event-ID", "As `after`, and wins over it", {"type": "string"}),),
        errors=("unknown_run", "gone", "invalid_offset"),
    ),
)
