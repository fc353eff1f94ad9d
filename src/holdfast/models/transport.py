"""The one HTTP transport to our models: a plain one that tells the run's probe what comes over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2

from holdfast.ports.probe import Probe, current_probe

REHEARSAL_HEADER: Final = "X-Holdfast-Rehearsal"
ERROR_BYTES_MAX: Final = 256 * 1024  # of the page that comes with an error's status; the rest is not read
LINE_BYTES_MAX: Final = 32 * 1024 * 1024  # of an answer without a line end: it is kept until that comes
_FAILED: Final = 400  # and above, of a status


class _ToldStream(httpx2.AsyncByteStream):
    """A response body that tells the probe of each chunk, comments and keepalives included; and ends."""

    def __init__(self, inner: httpx2.AsyncByteStream, probe: Probe, *, failed: bool) -> None:
        self._inner = inner
        self._probe = probe
        self._failed = failed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        kept = 0
        async for chunk in self._inner:
            self._probe.upstream_byte()
            yield chunk
            line_end = -1 if self._failed else chunk.rfind(b"\n")
            kept = kept + len(chunk) if line_end < 0 else len(chunk) - line_end - 1
            if self._failed and kept >= ERROR_BYTES_MAX:
                return
            if kept >= LINE_BYTES_MAX:
                raise httpx2.RemoteProtocolError(f"{kept} bytes of the answer came without the end of a line")

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
