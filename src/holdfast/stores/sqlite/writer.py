"""The one thread that writes: takes what is queued, commits it as a group, then answers everybody.

One fsync serves all operations of a group. An operation that raises costs the others nothing: the group is rolled
back and its operations are carried out one by one, which is safe because nobody was answered yet.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.ports.store import CONTROL_TOPIC, READY_TOPIC
from holdfast.stores.sqlite.tx import Tx

T = TypeVar("T")
Operation = Callable[[Tx], T]

_GROUP_MAX: Final = 500
_QUEUE_MAX: Final = 20_000
_LOOK_S: Final = 0.05


class _Job:
    __slots__ = ("error", "loop", "name", "operation", "result", "waiter")

    def __init__(
        self, name: str, operation: Operation[Any], loop: asyncio.AbstractEventLoop | None, waiter: Any
    ) -> None:
        self.name = name
        self.operation = operation
        self.loop = loop
        self.waiter = waiter  # an asyncio future of `loop`, or a concurrent one
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Owns the writing connection."""

    def __init__(self, conn: sqlite3.Connection, clock: Clock, publish: Sequence[Callable[[set[str]], None]]) -> None:
        """Start the thread. `publish`: who hears of wakes, first the waiters of this process."""
        self._conn = conn
        self._clock = clock
        self._publish = publish
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_QUEUE_MAX)
        self._version: int | None = None
        self._looked_at = 0.0
        self._closed = False
        self._died: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="holdfast-writer", daemon=True)
        self._thread.start()

    async def do(self, name: str, operation: Operation[T]) -> T:
        """Carry out `operation` in a transaction; durable when this returns.

        Raises:
            StoreUnavailable: The outcome is unknown, or the store is closed or overrun.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        self._put(_Job(name, operation, loop, waiter))
        return await waiter

    def do_sync(self, name: str, operation: Operation[T], limit_s: float) -> T:
        """As `do`, from a thread without a loop, waiting at most `limit_s` seconds."""
        waiter: Future[T] = Future()
        self._put(_Job(name, operation, None, waiter))
        try:
            return waiter.result(limit_s)
        except TimeoutError as error:
            raise StoreUnavailable(f"{name}: no answer from the writer in {limit_s} s") from error

    def depth(self) -> int:
        """How many operations wait."""
        return self._jobs.qsize()

    def died(self) -> BaseException | None:
        """What ended the thread, if it has ended by itself: the store is of no more use to this process."""
        return self._died

    def close(self, limit_s: float) -> bool:
        """Carry out what is queued, then end the thread; whether it ended within `limit_s` seconds."""
        self._closed = True
        with suppress(queue.Full):
            self._jobs.put(None, timeout=limit_s)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _put(self, job: _Job) -> None:
        if self._closed or self._died is not None:
            raise StoreUnavailable(f"{job.name}: the store is closed" + (f" ({self._died})" if self._died else ""))
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise StoreUnavailable(f"{job.name}: {_QUEUE_MAX} operations wait for the disk") from None

    def _work(self) -> None:
        last = False
        try:
            while not last:
                group, last = self._take()
                wakes = self._carry_out(group)
                self._answer(group)  # before the wakes: whoever is woken finds the asker already answered
                for publish in self._publish:
                    publish(wakes)
        except BaseException as error:  # noqa: BLE001 - the thread's death is the store's: every later call says so
            self._died = error
        finally:
            with suppress(sqlite3.Error):
                self._conn.close()

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for work; everything that is queued, and whether the thread shall end after it."""
        group: list[_Job] = []
        job = self._wait()
        while True:
            if job is None:
                return group, True
            group.append(job)
            if len(group) >= _GROUP_MAX:
                return group, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group, False

    def _wait(self) -> _Job | None:
        """The next job; meanwhile, tell those who wait for work or stops when another process has written."""
        while True:
            try:
                job = self._jobs.get(timeout=_LOOK_S)
            except queue.Empty:
                self._look()
            else:
                self._look()
                return job

    def _look(self) -> None:
        """`data_version` of this connection moves when any other connection has committed."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        with suppress(sqlite3.Error):
            version = self._conn.execute("PRAGMA data_version").fetchone()[0]
            if self._version not in (None, version):
                self._publish[0]({READY_TOPIC, CONTROL_TOPIC})
            self._version = version

    def _carry_out(self, group: list[_Job]) -> set[str]:
        if not group:
            return set()
        wakes = self._commit(group)
        if wakes is None and len(group) > 1:
            return set().union(*(self._commit([job]) or () for job in group))
        return wakes or set()

    def _commit(self, group: list[_Job]) -> set[str] | None:
        """Carry out `group` as one transaction; its wakes, or None where an operation raised: nothing was done."""
        job = group[0]
        try:
            self._conn.execute("BEGIN IMMEDIATE")
            tx = Tx(self._conn, self._clock)
            tx.let_time_pass()
            for job in group:
                job.error = None
                job.result = job.operation(tx)
            self._conn.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - handed to whoever asked, the thread lives on
            with suppress(sqlite3.Error):
                self._conn.execute("ROLLBACK")
            for each in group:
                each.error = _translated(job.name, error)
            return None
        return tx.wakes

    def _answer(self, group: list[_Job]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        for job in group:
            if job.loop is None:
                _resolve(job)
            else:
                by_loop.setdefault(job.loop, []).append(job)
        for loop, jobs in by_loop.items():
            with suppress(RuntimeError):  # that loop has closed: nobody waits there any more
                loop.call_soon_threadsafe(_resolve_all, jobs)


def _translated(name: str, error: BaseException) -> BaseException:
    if isinstance(error, sqlite3.Error):
        unavailable = StoreUnavailable(f"{name}: {type(error).__name__}: {error}")
        unavailable.__cause__ = error
        return unavailable
    return error


def _resolve_all(jobs: list[_Job]) -> None:
    for job in jobs:
        _resolve(job)


def _resolve(job: _Job) -> None:
    if job.waiter.done():  # cancelled: whoever asked has gone
        return
    if job.error is not None:
        job.waiter.set_exception(job.error)
    else:
        job.waiter.set_result(job.result)
