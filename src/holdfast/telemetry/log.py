"""Log lines, one per fact: the event's name as the first word, then logfmt, or one JSON object a line.

stream_start at=2026-01-02T03:04:05.678Z trace=... run=r_... session=s_... attempt=1
"""

from __future__ import annotations

import sys
import threading
import time
from typing import IO, Any, Literal

import structlog

from holdfast.domain.events import timestamp

_LINE_CHARACTERS_MAX = 8192


class Log:
    """Writes lines to a stream; a stream that fails or is closed costs a counted drop, never an exception."""

    def __init__(self, form: Literal["logfmt", "json"] = "logfmt", stream: IO[str] | None = None) -> None:
        """Choose the form; `stream` is stderr by default."""
        self._stream = stream
        self._lock = threading.Lock()
        self.dropped = 0
        self._json = structlog.processors.JSONRenderer(sort_keys=False) if form == "json" else None
        self._logfmt = structlog.processors.LogfmtRenderer(bool_as_flag=False)

    def write(self, event: str, at_ms: int | None = None, /, **facts: Any) -> None:
        """One fact. `at_ms` is the store's wall clock where it matters; facts that are None are left out."""
        try:
            line = self._render(event, int(time.time() * 1000) if at_ms is None else at_ms, facts)
            with self._lock:
                stream = self._stream or sys.stderr
                stream.write(line[:_LINE_CHARACTERS_MAX] + "\n")
                stream.flush()
        except Exception:  # noqa: BLE001 - P6: a log sink cannot change a run; the drop is counted
            self.dropped += 1

    def _render(self, event: str, at_ms: int, facts: dict[str, Any]) -> str:
        known = {"at": timestamp(at_ms)} | {k: v for k, v in facts.items() if v is not None}
        if self._json is not None:
            return str(self._json(None, "", {"event": event} | known))
        return f"{event} {self._logfmt(None, '', {k: _flat(v) for k, v in known.items()})}"


def _flat(value: Any) -> Any:
    return value.replace("\n", "\\n") if isinstance(value, str) else value
