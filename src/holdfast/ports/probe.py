"""The probe: what a run is doing right now, said by its model and its tools, read by receipts and inspect.

A plain recorder of facts, safe from any thread; it decides nothing and cannot fail a run. Found through a context
variable, so that a model or a tool deep inside an agent reaches the probe of the run that it works for.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_SHOWN = 20  # tools in a snapshot
_current: ContextVar[Probe | None] = ContextVar("holdfast_probe", default=None)


@dataclass(frozen=True)
class ThreadAtWork:
    """A thread that works for a call; `abandoned` if nobody waits for it any more."""

    call: str
    ident: int
    since: float
    abandoned: bool


class Probe:
    """Facts about one run's attempt; times are `time.monotonic()` seconds."""

    def __init__(self) -> None:
        """Begin with nothing open."""
        self._lock = threading.Lock()
        self._upstreams_open = 0
        self._tools: dict[str, tuple[str, float]] = {}
        self._threads: list[tuple[str, int, float]] = []  # call, thread, since
        self._processes: dict[str, int] = {}
        self._killed: set[str] = set()
        self.upstream_closed_at: float | None = None
        self.last_byte_at: float | None = None
        self.rehearsal = False
        self.waiting_on = "agent"
        self.since = time.monotonic()
        self.fires = ""
        self.fires_at: float | None = None
        self.history: dict[str, Any] = {}  # what was made of the session's messages before the model got them

    def upstream_opened(self) -> None:
        """A model request begins: from here until `upstream_closed` a socket may be open."""
        with self._lock:
            self._upstreams_open += 1

    def upstream_closed(self) -> None:
        """That request's socket is closed, or given back whole."""
        with self._lock:
            self._upstreams_open -= 1
            self.upstream_closed_at = time.monotonic()

    @property
    def upstreams_open(self) -> int:
        """How many model requests are open now."""
        return self._upstreams_open

    def upstream_byte(self) -> None:
        """The upstream sent something, keepalives included."""
        self.last_byte_at = time.monotonic()

    def waits(self, on: str, fires: str = "", fires_in_s: float | None = None) -> None:
        """Say what the run waits on from now, and which timer ends the wait when."""
        now = time.monotonic()
        with self._lock:  # all or none: a thread of another part reads them
            self.since = now
            self.waiting_on = on
            self.fires = fires
            self.fires_at = None if fires_in_s is None else now + fires_in_s

    def tool_started(self, call: str, name: str) -> None:
        """A tool's own code runs from now."""
        with self._lock:
            self._tools[call] = (name, time.monotonic())

    def tool_ended(self, call: str) -> None:
        """A tool's coroutine has ended, in whatever way; a thread of it may go on."""
        with self._lock:
            self._tools.pop(call, None)

    def thread_started(self, call: str) -> None:
        """This thread works for this call."""
        with self._lock:
            self._threads.append((call, threading.get_ident(), time.monotonic()))

    def thread_ended(self, call: str) -> None:
        """This thread is free again."""
        own = threading.get_ident()
        with self._lock:
            found = next((each for each in self._threads if each[:2] == (call, own)), None)
            if found is not None:
                self._threads.remove(found)

    def waiting(self) -> tuple[str, str, float | None]:
        """What was said last by `waits`: what the run waits on, and which timer ends that at what time."""
        with self._lock:
            return self.waiting_on, self.fires, self.fires_at

    def process_started(self, call: str) -> None:
        """A process of its own works for this call."""
        with self._lock:
            self._processes[call] = self._processes.get(call, 0) + 1
            self._killed.discard(call)

    def process_ended(self, call: str, *, killed: bool) -> None:
        """That process has ended, with all that it started: by itself, or because we ended it."""
        with self._lock:
            left = self._processes.get(call, 0) - 1
            if left > 0:
                self._processes[call] = left
            else:
                self._processes.pop(call, None)
            if killed:
                self._killed.add(call)

    def processes_running(self) -> set[str]:
        """The calls whose processes have not ended."""
        with self._lock:
            return set(self._processes)

    def processes_killed(self) -> set[str]:
        """The calls whose last process had to be ended, and is seen dead."""
        with self._lock:
            return set(self._killed)

    def tools_running(self) -> dict[str, str]:
        """Call -> tool name of the tools whose coroutine has not ended."""
        with self._lock:
            return {call: name for call, (name, _) in self._tools.items()}

    def threads_running(self) -> set[str]:
        """The calls that still occupy a thread."""
        with self._lock:
            return {call for call, _, _ in self._threads}

    def threads_at_work(self) -> list[ThreadAtWork]:
        """The threads that work for this run, oldest first."""
        with self._lock:
            return [ThreadAtWork(call, ident, at, call not in self._tools) for call, ident, at in self._threads]

    def snapshot(self) -> dict[str, Any]:
        """For inspect: what the run waits on, since when, which timer fires in how long, the last upstream byte."""
        now = time.monotonic()
        with self._lock:
            tools = [{"call": c, "name": n, "since_ms": int((now - t) * 1000)} for c, (n, t) in self._tools.items()]
            threads = sorted({call for call, _, _ in self._threads})
            processes = sorted(self._processes)
        return {
            "waiting_on": self.waiting_on,
            "since_ms": int((now - self.since) * 1000),
            "fires": self.fires,
            "fires_in_ms": None if self.fires_at is None else int((self.fires_at - now) * 1000),
            "threads": threads,
            "upstreams_open": self._upstreams_open,
            "last_upstream_byte_ms": None if self.last_byte_at is None else int((now - self.last_byte_at) * 1000),
            "tools": tools[:_SHOWN],
            "processes": processes,
        }


def current_probe() -> Probe:
    """The probe of the run this code works for; outside a run, one that nobody reads."""
    return _current.get() or Probe()


def enter(probe: Probe) -> None:
    """Make `probe` the current one for this task and what it starts."""
    _current.set(probe)
