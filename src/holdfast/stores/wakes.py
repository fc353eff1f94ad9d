"""Wakes: hints from the thread that committed to the loops that wait. They carry no data and may be lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from holdfast.aio import wait_event


class _Wake:
    """One waiter on one topic, on one loop."""

    __slots__ = ("_event", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Return at the next hint, or after `timeout_s` seconds; whether there was one."""
        woken = await wait_event(self._event, timeout_s)
        self._event.clear()
        return woken

    def set(self) -> None:
        """Deliver a hint; on the waiter's own loop."""
        self._event.set()


class Hub:
    """Who waits on which topic, in this process."""

    def __init__(self) -> None:
        """Begin with no waiter."""
        self._lock = threading.Lock()
        self._waiters: dict[str, set[_Wake]] = {}

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[_Wake]:
        """Wait on `topic` from the running loop, for as long as the context lasts."""
        wake = _Wake(asyncio.get_running_loop())
        with self._lock:
            self._waiters.setdefault(topic, set()).add(wake)
        try:
            yield wake
        finally:
            with self._lock:
                waiters = self._waiters[topic]
                waiters.discard(wake)
                if not waiters:
                    del self._waiters[topic]

    def topics(self) -> list[str]:
        """What is waited on."""
        with self._lock:
            return list(self._waiters)

    def publish(self, topics: Iterable[str]) -> None:
        """Wake every waiter of `topics`; from any thread, without waiting."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Wake]] = {}
        with self._lock:
            for topic in topics:
                for wake in self._waiters.get(topic, ()):
                    by_loop.setdefault(wake.loop, []).append(wake)
        for loop, wakes in by_loop.items():
            with suppress(RuntimeError):  # that loop has closed: nobody waits there any more
                loop.call_soon_threadsafe(_deliver, wakes)


def _deliver(wakes: list[_Wake]) -> None:
    for wake in wakes:
        wake.set()
