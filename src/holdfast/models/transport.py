"""The one HTTP transport to our models: a plain one that tells the run's probe what comes over the wire.

It also bounds what a parser above it has to hold: a server that sends a line, an event or a body without end would
otherwise fill the worker's memory until a limit of time ends it. Content has its own bound, the run's `log_bytes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2

from holdfast.ports.probe import Probe, current_probe

PIECE_BYTES_MAX: Final = 16_777_216  # a whole answer that is not streamed, or one event of a stream
ERROR_BYTES_MAX: Final = 262_144  # of the page that comes with an error's status; the rest is not read
_FAILED: Final = 400  # and above, of a status
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")  # of an event
REHEARSAL_HEADER: Final = "X-Holdfast-Rehearsal"


class AnswerTooLarge(httpx2.RemoteProtocolError):
    """A piece of an answer has no end in sight."""


class _ToldStream(httpx2.AsyncByteStream):
    """A response body that tells the probe of each chunk, comments and keepalives included; none of it without end."""

    def __init__(self, inner: httpx2.AsyncByteStream, probe: Probe, *, failed: bool) -> None:
        self._inner = inner
        self._probe = probe
        self._failed = failed
        self._since_end = 0
        self._tail = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._inner:
            self._probe.upstream_byte()
            self._bound(chunk)
            yield chunk
            read += len(chunk)
            if self._failed and read >= ERROR_BYTES_MAX:
                return

    def _bound(self, chunk: bytes) -> None:
        """Raise once an event has become too long; its end may lie across two chunks."""
        joined = self._tail + chunk
        ended_at = max(joined.rfind(end) for end in _ENDS)
        self._since_end = len(joined) - ended_at if ended_at >= 0 else self._since_end + len(chunk)
        self._tail = joined[-3:]
        if self._since_end > PIECE_BYTES_MAX:
            raise AnswerTooLarge(f"a piece of the answer is larger than {PIECE_BYTES_MAX} bytes")

    async def aclose(self) -> None:
        await self._inner.aclose()


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
        response = await self._inner.handle_async_request(request)
        if REHEARSAL_HEADER in response.headers:
            probe.rehearsal = True
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _ToldStream(response.stream, probe, failed=response.status_code >= _FAILED)
        return response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


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
