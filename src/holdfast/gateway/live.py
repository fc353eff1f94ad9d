"""GET /api/events: the caller's runs as they change, for lists.

    feed -> reader, at a place of its own -> `runs`, then `run` and `forgotten` frames -> client, as fast as it reads

Nothing here has an offset: whoever comes back is given the list as it is, which is what a list shows.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import ID_PATTERN
from holdfast.gateway.access import Identity, identity_of
from holdfast.gateway.bodies import check_id
from holdfast.gateway.events import NDJSON, SSE, STREAM_HEADERS
from holdfast.gateway.feeds import BEFORE, PACE_S, Batch, Feed
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import document
from holdfast.gateway.readers import Reader
from holdfast.gateway.requests import tenant_of, wanted
from holdfast.gateway.routes import JSON, Answer, Operation, Query, answer
from holdfast.gateway.views import RunView, run_view

_LOOK_AT_KEY_S: Final = 1.0


class Listed(msgspec.Struct):
    """What has not ended, and the newest of what has; newest first."""

    runs: list[RunView]


class ListStream(Response):
    """A streaming response that follows the list of one tenant until its client leaves."""

    def __init__(self, gate: Gate, who: Identity, session: str | None, form: SSE | NDJSON) -> None:
        """Take whose list it is, whether only runs of one session are wanted, and how it is written."""
        self.status_code = 200
        sent = {"content-type": f"{form.media_type}; charset=utf-8", **STREAM_HEADERS}
        self.raw_headers = [(k.lower().encode(), v.encode()) for k, v in sent.items()]
        self._gate = gate
        self._who = who
        self._session = session
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response; returns when the client left, lost its right to read, or the server closes."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        async with Reader(self._gate, scope, receive) as reader:
            with self._gate.feeds.join(self._who.tenant) as feed:
                await self._pump(feed, reader, send)
        if not reader.gone:
            await send({"type": "http.response.body", "body": b""})

    async def _pump(self, feed: Feed, reader: Reader, send: Send) -> None:
        form, clock, keepalive_s = self._form, asyncio.get_running_loop().time, self._gate.settings.keepalive_s
        batch = Batch([], BEFORE)
        await reader.write(send, form.begin())
        written = clock()
        while True:
            if (error := self._ended(feed)) is not None:
                kind = "unauthorized" if error.code == "unauthorized" else "unavailable"
                await reader.write(send, form.notice(kind, document(error)))
                return
            if feed.ready:
                batch = feed.read(batch.place, self._session)
            body = b"".join(form.framed(kind, data) for kind, data in batch.frames)
            if not body and clock() - written >= keepalive_s:
                body = form.keepalive
            if body:
                await reader.write(send, body)
                written = clock()
            if batch.more:
                await asyncio.sleep(PACE_S)
            else:
                await feed.changed(batch.place, self._patience_s(written + keepalive_s - clock()))

    def _ended(self, feed: Feed) -> HoldfastError | None:
        if ended := self._gate.access.ended(self._who):
            return HoldfastError("unauthorized", ended)
        return feed.error

    def _patience_s(self, until_keepalive_s: float) -> float:
        """A key may be withdrawn, and a token ends, while nothing happens; who has neither is left alone."""
        watched = self._who.key is not None or self._who.until is not None
        return max(0.01, min(until_keepalive_s, _LOOK_AT_KEY_S) if watched else until_keepalive_s)


async def follow_list(gate: Gate, request: Request) -> Response:
    """GET /api/events in the form that Accept asks for; as JSON, the list once."""
    asked = request.query_params.get("session")
    session = check_id(asked, "session") if asked is not None else None
    form = wanted(request, (SSE.media_type, NDJSON.media_type, JSON.media_type))
    if form == JSON.media_type:
        found = await gate.sessions.follow_list(tenant_of(request)).look()
        listed = sorted((c for c in found if c.record is not None), key=lambda c: c.number, reverse=True)
        records = [c.record for c in listed if c.record is not None and session in (None, c.record.session)]
        return answer(Listed([run_view(record, listed=True) for record in records]))
    who = identity_of(request)
    with gate.feeds.join(who.tenant) as feed:  # a store that does not answer is a 503, and no stream of nothing
        await feed.opened()
    return ListStream(gate, who, session, SSE() if form == SSE.media_type else NDJSON())


OPERATIONS = (
    Operation(
        "GET",
        "/api/events",
        follow_list,
        "Follow the list of runs: the list, then each run whenever it changes its state",
        (
            Answer(
                200,
                "The list, in the form that Accept asks for; as JSON, once",
                Listed,
                text=(SSE.media_type, NDJSON.media_type),
            ),
        ),
        query=(Query("session", "Of this session only", {"type": "string", "pattern": f"^{ID_PATTERN}$"}),),
        errors=("invalid_request",),
    ),
)
