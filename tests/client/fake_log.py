"""A server that holds one run's log and misbehaves on its connections as told; answers in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import httpx2

from holdfast.client import AsyncClient, Backoff, Client

RUN = "r_1"

Frames = Callable[["FakeLog", int], Iterator[bytes]]


class FakeLog:
    """The log, the connections it was asked for, and how each of them goes."""

    def __init__(self, length: int, connections: Sequence[Frames | httpx2.Response] = ()) -> None:
        """`length` events, the last of them terminal; connections beyond the script are honest."""
        self.length = length
        self.asked: list[httpx2.Request] = []
        self.waits: list[float] = []
        self._script = list(connections)

    def client(self, *, attempts: int = 5) -> Client:
        """A client of this server that notes its waits instead of waiting."""
        backoff = Backoff(attempts=attempts, sleep=self.waits.append)
        return Client("http://log.test", transport=httpx2.MockTransport(self._answer), backoff=backoff)

    def async_client(self, *, attempts: int = 5) -> AsyncClient:
        """An asynchronous client of this server, which waits for next to nothing."""
        backoff = Backoff(first_s=1e-6, max_s=1e-6, attempts=attempts)
        return AsyncClient("http://log.test", transport=httpx2.MockTransport(self._answer), backoff=backoff)

    def event(self, seq: int) -> dict[str, object]:
        """An event of the log."""
        kind = "run.completed" if seq == self.length else "text.delta"
        return {"seq": seq, "run": RUN, "type": kind, "ts": "", "part": 0, "text": f"t{seq} "}

    def frame(self, seq: int, epoch: int = 1) -> bytes:
        """An event as SSE."""
        event = self.event(seq)
        return f"id: {seq}-{epoch}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    def notice(self, kind: str, **fields: object) -> bytes:
        """What is said about the log and is not in it."""
        return f"event: {kind}\ndata: {json.dumps({'run': RUN, **fields})}\n\n".encode()

    def honest(self, after: int) -> Iterator[bytes]:
        """All that is missing."""
        yield b"retry: 1000\n\n"
        yield b": keepalive\n\n"
        for seq in range(after + 1, self.length + 1):
            yield self.frame(seq)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        step = self._script.pop(0) if self._script else FakeLog.honest
        if isinstance(step, httpx2.Response):
            return step
        asked = request.headers.get("last-event-id") or request.url.params.get("after") or "0"
        frames = step(self, int(asked.partition("-")[0]))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream(frames))


class _Stream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, frames: Iterator[bytes]) -> None:
        self._frames = frames

    def __iter__(self) -> Iterator[bytes]:
        return self._frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for frame in self._frames:
            yield frame


def cut(after_frames: int, error: Exception | None = None, *, torn: bool = False, again: int = 0) -> Frames:
    """A connection that breaks after so many frames.

    Args:
        after_frames: How many frames come whole.
        error: Raised by the socket; None is an orderly end.
        torn: Whether half of the next frame comes before the break.
        again: How many events before the place are sent once more.
    """

    def frames(log: FakeLog, after: int) -> Iterator[bytes]:
        yield b"retry: 1000\n\n"
        first = max(1, after + 1 - again)
        last = min(log.length, first + after_frames - 1)
        for seq in range(first, last + 1):
            yield log.frame(seq)
        if torn and last < log.length:
            yield log.frame(last + 1)[:40]
        if error is not None:
            raise error

    return frames
