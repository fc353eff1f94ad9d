"""/streams/runs/{run}: a run's log by the Durable Streams protocol, to read.

A log is a JSON stream: its messages are the events as they are stored, and it is closed after its terminal event. An
offset is the last event that its reader has, `<seq>_<epoch>`, padded so that offsets sort as text. The log is made by
its run alone: creating, appending and deleting are not offered.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import encode_json
from holdfast.domain.ids import RunKey
from holdfast.gateway.events import PAGE_EVENTS_MAX, LogStream, Opening, complete
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import PROBLEM_TYPE, Problem, document, invalid
from holdfast.gateway.readers import Reader, pages
from holdfast.gateway.requests import JSON_TYPE, run_key
from holdfast.gateway.routes import Answer, Operation, Query
from holdfast.ports.store import Page

_OFFSET: Final = re.compile(r"([0-9]{15})_([0-9]{9})")
_ASKED: Final = r"^(-1|now|[0-9]{15}_[0-9]{9})$"
_CURSOR_S: Final = 20
_CURSOR_EPOCH_S: Final = 1_728_432_000  # 2024-10-09, as the protocol counts
_JITTER_S: Final = 3600
_SECURE: Final = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "cross-origin"}
_NO_STORE: Final = "no-store"
# What a log has said stays as it is; it is one tenant's, so nobody else's cache may keep it.
_KEPT: Final = "private, max-age=60, stale-while-revalidate=300"
_ASKED_AGAIN: Final = "private, no-cache"


class Offset(NamedTuple):
    """The last event a reader has; seq 0 is the beginning."""

    seq: int
    epoch: int

    def __str__(self) -> str:
        """As it goes over the wire."""
        return f"{self.seq:015d}_{self.epoch:09d}"


class SSE:
    """Batches of events, each with a control event that says where its reader is. Pure, given the cursor."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def __init__(self, at: Offset, cursor: int) -> None:
        """Take where the reader is, and the cursor of its request."""
        self._at = at
        self._cursor = str(cursor)

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def ended(self) -> bool:
        """Only the log's end is its end."""
        return False

    def page(self, page: Page) -> bytes:
        """One batch, and its control event."""
        self._at = after(page, self._at)
        said: dict[str, Any] = {"streamNextOffset": str(self._at)}
        if complete(page):
            said |= {"upToDate": True, "streamClosed": True}
        else:
            said["streamCursor"] = self._cursor
            if self._at.seq >= page.head:
                said["upToDate"] = True
        batch = b"event: data\ndata:[%b]\n\n" % b",".join(page.events) if page.events else b""
        return batch + b"event: control\ndata:%b\n\n" % encode_json(said)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """The protocol has no word for it: the stream ends, and its reader's next request is answered with it."""
        return b": %b\n\n" % kind.encode()


class LongPoll(Response):
    """Waits for the next event, at most so long, and then says what there is."""

    def __init__(self, gate: Gate, key: RunKey, at: Offset, cursor: int, wait_s: float) -> None:
        """Take what is waited for."""
        self._gate = gate
        self._key = key
        self._at = at
        self._cursor = cursor
        self._wait_s = wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer; nothing is sent to a client that has left."""
        response: Response | None = None
        async with Reader(self._gate, scope, receive) as reader:
            response = await self._answer()
        if response is None and not reader.gone:
            response = _nothing(self._at, self._cursor, closed=False)  # the server is closing: ask another one
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self) -> Response:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        async with aclosing(pages(self._gate, self._key, self._at.seq)) as tail:
            async for found in tail:
                if isinstance(found, HoldfastError):
                    return _refusal(found, found.status)
                if found.events:
                    return _whole(self._key, self._at, found, {"Stream-Cursor": str(self._cursor)}, _NO_STORE)
                if complete(found) or loop.time() >= until:
                    return _nothing(self._at, self._cursor, closed=complete(found))
        return _nothing(self._at, self._cursor, closed=True)


async def read_stream(gate: Gate, request: Request) -> Response:
    """GET /streams/runs/{run}: a part of the log, or it live; HEAD: where it ends."""
    try:
        return await _read(gate, request)
    except HoldfastError as error:
        if error.code in ("invalid_request", "invalid_offset"):
            return _refusal(error, 400)
        if error.status in (404, 410):
            return _refusal(error, error.status)
        raise


async def _read(gate: Gate, request: Request) -> Response:
    key = run_key(request)
    if request.method == "HEAD":
        tip = await gate.sessions.read(key, 0, 1)
        headers = {"Stream-Next-Offset": str(Offset(tip.head, tip.epoch)), "Cache-Control": _NO_STORE, **_SECURE}
        if tip.state.terminal:
            headers["Stream-Closed"] = "true"
        return Response(None, 200, headers, JSON_TYPE)
    live = _once(request, "live")
    asked = _once(request, "offset")
    if live not in (None, "long-poll", "sse"):
        raise invalid(f"live={live[:64]!r} is neither long-poll nor sse")
    if live is not None and asked is None:
        raise invalid(f"live={live} needs an offset; -1 is the beginning, now the end")
    at, page = await _open(gate, key, asked)
    cursor = _cursor(request)
    if live == "sse":
        headers = {**_SECURE, "content-type": SSE.media_type, "Cache-Control": "no-cache, no-store, no-transform"}
        return LogStream(gate, key, Opening(page, None), SSE(at, cursor), headers=headers)
    if live == "long-poll":
        if page.events:
            return _whole(key, at, page, {"Stream-Cursor": str(cursor)}, _NO_STORE)
        if complete(page):
            return _nothing(at, cursor, closed=True)
        return LongPoll(gate, key, at, cursor, gate.settings.keepalive_s)
    if asked == "now":
        return _whole(key, at, page, {}, _NO_STORE, etag=False)
    kept = _KEPT if complete(page) or after(page, at).seq < page.head else _ASKED_AGAIN
    found = _whole(key, at, page, {}, kept)
    tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if found.headers["etag"] in tags:
        return Response(
            None, 304, {k: v for k, v in found.headers.items() if k not in ("content-length", "content-type")}
        )
    return found


async def _open(gate: Gate, key: RunKey, asked: str | None) -> tuple[Offset, Page]:
    """Where the reader is, and the first page from there on."""
    if asked == "now":
        tip = await gate.sessions.read(key, 0, 1)
        at = Offset(tip.head, tip.epoch)
    elif asked in (None, "-1"):
        at = Offset(0, 0)
    else:
        match = _OFFSET.fullmatch(asked or "")
        if match is None or not asked or not asked.isascii():
            raise invalid(
                f"offset={(asked or '')[:64]!r} is none that this server gave; -1 is the beginning, now the end"
            )
        at = Offset(int(match[1]), int(match[2]))
    page = await gate.sessions.read(key, at.seq, PAGE_EVENTS_MAX, at.epoch if at.seq else None)
    if page.resync or at.seq > page.head:
        raise HoldfastError("gone", f"offset {at} is not in the log of run {key.run}", remedy="read from offset=-1")
    return at, page


def after(page: Page, at: Offset) -> Offset:
    """Where a reader is that was at `at` and has this page."""
    return Offset(page.first + len(page.events) - 1, page.epochs[-1]) if page.events else at


def _whole(
    key: RunKey, at: Offset, page: Page, headers: dict[str, str], cache_control: str, *, etag: bool = True
) -> Response:
    end = after(page, at)
    sent = {"Stream-Next-Offset": str(end), "Cache-Control": cache_control, **_SECURE, **headers}
    if end.seq >= page.head:
        sent["Stream-Up-To-Date"] = "true"
    if complete(page):
        sent["Stream-Closed"] = "true"
    if etag:
        sent["ETag"] = f'"{key.run}:{at}:{end}{":closed" if complete(page) else ""}"'
    return Response(b"[%b]" % b",".join(page.events), 200, sent, JSON_TYPE)


def _nothing(at: Offset, cursor: int, *, closed: bool) -> Response:
    headers = {"Stream-Next-Offset": str(at), "Stream-Up-To-Date": "true", "Cache-Control": _NO_STORE, **_SECURE}
    headers |= {"Stream-Closed": "true"} if closed else {"Stream-Cursor": str(cursor)}
    return Response(None, 204, headers)


def _refusal(error: HoldfastError, status: int) -> Response:
    said = {**document(error), "status": status}
    if status == 400:
        said["title"] = "Bad Request"
    return Response(encode_json(said), status, {"Cache-Control": _NO_STORE, **_SECURE}, PROBLEM_TYPE)


def _once(request: Request, name: str) -> str | None:
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise invalid(f"{name} is given {len(values)} times")
    return values[0] if values else None


def _cursor(request: Request) -> int:
    """The interval that it is, or one after the client's: a cache that answered it once must not do so again."""
    now = int((time.time() - _CURSOR_EPOCH_S) // _CURSOR_S)
    said = request.query_params.get("cursor", "")
    theirs = int(said) if said.isascii() and said.isdigit() and len(said) <= 15 else -1
    jitter = random.randint(1, _JITTER_S) // _CURSOR_S  # noqa: S311 - spreads readers, hides nothing  # nosec B311
    return now if theirs < now else theirs + max(1, jitter)


OPERATIONS = (
    Operation(
        "GET",
        "/streams/runs/{run}",
        read_stream,
        "Durable Streams: read a run's log",
        (
            Answer(200, "Events from an offset on, or it live", list[dict[str, Any]], ("text/event-stream",)),
            Answer(204, "long-poll: nothing came, or the stream is closed"),
            Answer(304, "The part that If-None-Match names"),
            Answer(400, "A parameter is wrong", Problem),
        ),
        query=(
            Query("offset", "-1, now, or a Stream-Next-Offset", {"type": "string", "pattern": _ASKED}),
            Query("live", "How to wait for more", {"type": "string", "enum": ["long-poll", "sse"]}),
            Query("cursor", "The Stream-Cursor of the answer before", {"type": "string"}),
        ),
        errors=("unknown_run", "gone"),
    ),
)
