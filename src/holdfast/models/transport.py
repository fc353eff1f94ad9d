"""The one HTTP transport to our models: a plain one that tells the run's probe what comes over the wire.

It also bounds what a parser above it has to hold (`bounds`): a server that sends a line, an event or a body without
end, compressed or not, would otherwise fill the worker's memory until a limit of time ends it. Content has its own
bound, `log_bytes`. Nothing is asked for compressed: an answer of tokens is small, and waits for nothing else.
"""

from __future__ import annotations

import re
from typing import Any, Final

import httpx2

from holdfast.models.bounds import ACCEPT_ENCODING, BoundedStream, Shape, coding_of
from holdfast.ports.probe import Probe, current_probe

PIECE_BYTES_MAX: Final = 16_777_216  # a whole answer that is not streamed, or one event of a stream
_REDIRECTED: Final = 300  # and above, of a status: what comes with it is no answer
_ASKS_FOR_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')  # within a JSON string its quotes are escaped
REHEARSAL_HEADER: Final = "X-Holdfast-Rehearsal"


class ProbedTransport(httpx2.AsyncBaseTransport):
    """Passes requests on; the probe hears of connects, bytes, and whether a rehearsal model answers."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, connect_s: float) -> None:
        """Wrap `inner`, whose connects end after `connect_s` seconds."""
        self._inner = inner
        self._connect_s = connect_s

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request; its body is told of as it is read."""
        probe = current_probe()
        request.extensions = {**request.extensions, "trace": _tracer(probe, self._connect_s)}
        request.headers[ACCEPT_ENCODING] = "identity"
        response = await self._inner.handle_async_request(request)
        if REHEARSAL_HEADER in response.headers:
            probe.rehearsal = True
        stream = response.stream
        if isinstance(stream, httpx2.AsyncByteStream):
            try:
                coding = coding_of(response)
            except httpx2.RemoteProtocolError:
                await stream.aclose()
                raise
            response.headers.pop("Content-Encoding", None)
            shape = _shape_of(request, response)
            response.stream = BoundedStream(
                stream, shape=shape, piece_bytes=PIECE_BYTES_MAX, coding=coding, told=probe.upstream_byte
            )
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


def _shape_of(request: httpx2.Request, response: httpx2.Response) -> Shape:
    """What a piece of the answer is. A stream is one by what was asked: servers call it JSON at times."""
    if response.status_code >= _REDIRECTED:
        return "failed"
    if "text/event-stream" in response.headers.get("Content-Type", ""):
        return "events"
    try:
        asked = request.content
    except httpx2.RequestNotRead:
        return "events"
    return "events" if _ASKS_FOR_STREAM.search(asked) else "whole"


def _tracer(probe: Probe, connect_s: float) -> Any:
    """Tells the probe while a connection is being opened, and what was waited for before, afterwards."""
    before: list[tuple[str, str, float | None]] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        del info
        if event == "connection.connect_tcp.started":
            before.append((probe.waiting_on, probe.fires, probe.fires_at))
            probe.waits("model connect", fires="model_connect", fires_in_s=connect_s)
        elif event.startswith("connection.connect_tcp.") and before:
            on, fires, fires_at = before.pop()
            since = probe.since
            probe.waits(on, fires)
            probe.since, probe.fires_at = since, fires_at

    return trace
