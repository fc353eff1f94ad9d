"""Log lines, one per fact: the event's name as the first word, then logfmt, or one JSON object a line.

stream_start at=2026-01-02T03:04:05.678Z trace=... run=r_... session=s_... attempt=1

A line is written by whoever states the fact, before it goes on: that is what keeps the lines of several processes in
order. It cannot wait (streams), and secrets in it are masked.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from typing import IO, Any, Literal

import structlog

from holdfast.domain.events import timestamp
from holdfast.domain.secrets import mask
from holdfast.telemetry.facade import NULL, Telemetry
from holdfast.telemetry.streams import Outlet, standard_error

_LINE_CHARACTERS_MAX = 8192
# What is said of every run, however it goes.
_ROUTINE = frozenset({"stream_requested", "stream_start", "stream_cancelled", "stream_end", "cleanup_done"})


class Log:
    """Writes lines to a stream; a stream that fails, waits or is closed costs a counted drop, never an exception.

    Attributes:
        telemetry: Hears every fact, too.
    """

    telemetry: Telemetry = NULL
    _unsaid: frozenset[str] = frozenset()

    def __init__(self, form: Literal["logfmt", "json"] = "logfmt", stream: IO[str] | None = None) -> None:
        """Choose the form; `stream` is stderr by default."""
        self._stream = stream
        self._lock = threading.Lock()
        self._failed = 0
        self._told = 0
        self._json = structlog.processors.JSONRenderer(sort_keys=False) if form == "json" else None
        self._logfmt = structlog.processors.LogfmtRenderer(bool_as_flag=False)

    @property
    def dropped(self) -> int:
        """How many lines were lost."""
        outlet = self._outlet()
        return self._failed + (outlet.dropped if outlet is not None else 0)

    def write(self, event: str, at_ms: int | None = None, /, **facts: Any) -> None:
        """One fact. `at_ms` is the store's wall clock where it matters; facts that are None are left out."""
        if event in self._unsaid:
            return
        at = int(time.time() * 1000) if at_ms is None else at_ms
        try:
            line = mask(self._render(event, at, facts))[:_LINE_CHARACTERS_MAX] + "\n"
            outlet = self._outlet()
            if outlet is None:
                with self._lock:
                    stream = self._stream or sys.stderr
                    stream.write(line)
                    stream.flush()
            else:
                outlet.write((self._gap(outlet) + line).encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - P6: a log sink cannot change a run; the drop is counted
            self._failed += 1
        self.telemetry.fact(event, at, facts)

    def of_synthetic_runs(self) -> Log:
        """The same log for runs of which only trouble is said, and nothing counted."""
        quiet = copy.copy(self)
        quiet._unsaid, quiet.telemetry = _ROUTINE, NULL
        return quiet

    def flush(self, limit_s: float = 0.5) -> None:
        """Before the process ends: wait a little for a reader that is only slow."""
        outlet = self._outlet()
        if outlet is not None:
            outlet.flush(limit_s)

    def _outlet(self) -> Outlet | None:
        return standard_error() if self._stream is None else None

    def _gap(self, outlet: Outlet) -> str:
        """The line that says how many are missing here, once there is room again."""
        lost = outlet.dropped - self._told
        if lost <= 0 or not outlet.idle:
            return ""
        self._told = outlet.dropped
        return self._render("log_dropped", int(time.time() * 1000), {"lines": lost}) + "\n"

    def _render(self, event: str, at_ms: int, facts: dict[str, Any]) -> str:
        known = {"at": timestamp(at_ms)} | {k: v for k, v in facts.items() if v is not None}
        if self._json is not None:
            return str(self._json(None, "", {"event": event} | known))
        return f"{event} {self._logfmt(None, '', {k: _flat(v) for k, v in known.items()})}"


def _flat(value: Any) -> Any:
    return value.replace("\n", "\\n") if isinstance(value, str) else value
