"""What a tool says while it works: `progress("...")`, from async code and from threads, at no risk to the tool.

    from holdfast.tools import progress

    def build() -> str:
        for line in lines():
            progress(line)        # returns at once, whoever listens and however slowly

Pieces are output: readers join them as they are. They become `tool.progress` events at most ten times a second, so
what is said in between runs together and nothing is lost, until a call has said more than the limit; then an event
says so, with `truncated` and how many bytes there were. After the call has ended nothing is told any more: a thread
that outlived its run speaks to nobody.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from holdfast.ports.agent import ToolProgress

INTERVAL_S: Final = 0.1


class Reporter:
    """Gathers what one call says and offers it to the run; made and closed on the run's loop."""

    def __init__(self, call: str, bytes_max: int, offer: Callable[[ToolProgress], bool]) -> None:
        """Begin with nothing said.

        Args:
            call: The call.
            bytes_max: How much of its words is told in all.
            offer: Takes an event without waiting; False if there is no room now.
        """
        self._call = call
        self._room = bytes_max
        self._offer = offer
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pieces: list[str] = []
        self._bytes = 0
        self._told_bytes = 0  # in the last event that said that something was left out
        self._cut = False
        self._armed = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._last = -INTERVAL_S

    def say(self, text: str) -> None:
        """Add a piece; from any thread."""
        encoded = text.encode(errors="replace")
        if not encoded:
            return
        with self._lock:
            if self._closed:
                return
            self._bytes += len(encoded)
            if self._cut:
                return
            if len(encoded) > self._room:
                text, self._cut = encoded[: self._room].decode(errors="ignore"), True
            self._room -= len(encoded)
            self._pieces.append(text)
            if self._armed:
                return
            self._armed = True
        try:
            self._loop.call_soon_threadsafe(self._arm)
        except RuntimeError:  # the loop is closed: the process ends
            return

    def close(self) -> ToolProgress | None:
        """Nothing more is taken; what was not yet told."""
        with self._lock:
            self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        return self._take()

    def _arm(self) -> None:
        if not self._closed:
            due = max(0.0, self._last + INTERVAL_S - self._loop.time())
            self._timer = self._loop.call_later(due, self._tell)

    def _tell(self) -> None:
        event = self._take()
        self._last = self._loop.time()
        if event is None or self._offer(event):
            return
        with self._lock:  # no room: together with what comes, later
            self._pieces.insert(0, event.text)
            if event.truncated:
                self._told_bytes = 0
            self._armed = True
        self._arm()

    def _take(self) -> ToolProgress | None:
        with self._lock:
            text, self._pieces, self._armed = "".join(self._pieces), [], False
            cut = self._cut and self._bytes > self._told_bytes
            if cut:
                self._told_bytes = self._bytes
            if not text and not cut:
                return None
            return ToolProgress(self._call, text, truncated=cut, bytes=self._bytes if cut else 0)


class _Aloud:
    """In an isolated tool's process: what is printed there is what readers are shown."""

    def say(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


_current: ContextVar[Reporter | _Aloud | None] = ContextVar("holdfast_progress", default=None)


def progress(text: str) -> None:
    """Say something about the tool call that this code works for; outside one, nothing happens."""
    reporter = _current.get()
    if reporter is not None:
        reporter.say(str(text))


def print_progress() -> None:
    """Let `progress` print from here on."""
    _current.set(_Aloud())


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Let `progress` speak for this call within the block, and in the threads and tasks that start there."""
    token = _current.set(reporter)
    try:
        yield
    finally:
        _current.reset(token)
