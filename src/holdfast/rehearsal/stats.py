"""Counts what the rehearsal model was asked, and keeps the last requests so that users see what a model would have.

Every request is in exactly one place: open, finished (ended by the server, in whatever way the script says) or
disconnected by its client; `requests` counts them all. A reset empties the counters, never the set of open ones.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import msgspec

__all__ = ["Stats"]

KEPT_MAX = 20
KEPT_BYTES_MAX = 256 * 1024
REPEATS_MAX = 10_000


class Stats:
    """The counters of one rehearsal model."""

    def __init__(self) -> None:
        """Start from zero."""
        self.open = 0
        self.served = 0  # over all resets; numbers answers
        self.reset()

    def reset(self) -> None:
        """Forget everything but the requests that are open, `times` of `!status` included."""
        self.requests = 0
        self.finished = 0
        self.client_disconnects = 0
        self.last_disconnect_ms: float | None = None
        self._kept: deque[bytes] = deque(maxlen=KEPT_MAX)
        self._repeats: OrderedDict[tuple[str, int], int] = OrderedDict()

    def opened(self) -> None:
        """A request came in."""
        self.open += 1
        self.served += 1
        self.requests += 1

    def ended(self) -> None:
        """The server ended a request."""
        self.open -= 1
        self.finished += 1

    def disconnected(self, silence_s: float) -> None:
        """A client went away, `silence_s` after the last byte sent to it."""
        self.open -= 1
        self.client_disconnects += 1
        self.last_disconnect_ms = round(silence_s * 1000, 3)

    def keep(self, body: bytes) -> None:
        """Remember a request's body; a large one only by its size."""
        if len(body) > KEPT_BYTES_MAX:
            body = msgspec.json.encode({"truncated": True, "bytes": len(body)})
        self._kept.append(body)

    def repeat(self, digest: str, line: int) -> int:
        """How often this line has seen these messages before; bounded, the least recent are forgotten."""
        key = (digest, line)
        seen = self._repeats.pop(key, 0)
        self._repeats[key] = seen + 1
        if len(self._repeats) > REPEATS_MAX:
            self._repeats.popitem(last=False)
        return seen

    def snapshot(self, *, requests: bool) -> dict[str, Any]:
        """The counters as JSON, with the last request, or with the last ones."""
        kept = [msgspec.Raw(body) for body in self._kept]
        shown: dict[str, Any] = {
            "requests": self.requests,
            "open": self.open,
            "finished": self.finished,
            "client_disconnects": self.client_disconnects,
            "last_disconnect_ms": self.last_disconnect_ms,
            "last_request": kept[-1] if kept else None,
        }
        if requests:
            shown["last_requests"] = kept
        return shown
