"""The one thread that writes: takes what is queued, commits it as a group, then answers everybody.

One fsync serves all operations of a group. An operation that raises costs the others nothing: the group is rolled
back and its operations are carried out one by one, which is safe because nobody was answered yet.

SQLite's write lock has no queue: a thread that commits back to back keeps everybody else out for hundreds of
milliseconds. So this one leaves a gap after each stint, while others are attached, or when somebody asks for it.

A group that meets a full disk frees the ballast, and from then on only what ends something is carried out.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.ports.store import CONTROL_TOPIC, READY_TOPIC
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.ballast import Ballast
from holdfast.stores.sqlite.connect import BUSY_TIMEOUT_S, begin
from holdfast.stores.sqlite.faults import breaks_connection, may_be_full, says_full
from holdfast.stores.sqlite.tx import Tx

T = TypeVar("T")
Operation = Callable[[Tx], T]

_GROUP_MAX: Final = 500
_QUEUE_MAX: Final = 20_000
_LOOK_S: Final = 0.05
_TOLD_LOOK_S: Final = 0.2  # where the others tell us by datagrams, which are seldom lost: an idle process should rest
_NEW_S: Final = 2.0  # they look for whom to tell once a second
_STINT_S: Final = 0.025
_GAP_S: Final = 0.005
_CATCH_UP_MS: Final = 20
_REFUSED: Final = frozenset(
    {"create", "append", "steer", "park", "decide", "resume", "edit_input", "claim"}
)  # on a full disk


class _Undone(Exception):
    """A group was rolled back; `job` is whose operation raised, None if the transaction itself failed."""

    def __init__(self, job: _Job | None, error: BaseException) -> None:
        super().__init__(str(error))
        self.job = job
        self.error = error


class _Full(Exception):
    """A group was rolled back because the disk is full."""


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

    def __init__(
        self,
        conn: sqlite3.Connection,
        clock: Clock,
        publish: Sequence[Callable[[set[str]], None]],
        *,
        others: Callable[[], bool] = lambda: False,
        told: Callable[[], bool] = lambda: False,
        ballast: Ballast | None = None,
        reopen: Callable[[], sqlite3.Connection] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            conn: Becomes this thread's own.
            clock: The store's.
            publish: Who hears of wakes, first the waiters of this process.
            others: Whether anybody else writes to this database.
            told: Whether they tell us when they do.
            ballast: Says when the disk is full; None in memory.
            reopen: Opens another connection in place of one that is broken; None in memory.
        """
        self._conn = conn
        self._others = others
        self._told = told
        self._told_from = time.monotonic() + _NEW_S
        self._ballast = ballast
        self._reopen = reopen
        self._busy_since = time.monotonic()
        self._began = 0.0
        self._waits = False
        self._kept_out_since: float | None = None
        self._close_by = float("inf")
        self._way_wanted = 0
        self._way_lock = threading.Lock()
        self._behind = False
        self._last = False
        self._left: list[_Job] = []
        self._note: Callable[[], None] = lambda: None
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

    def hear(self, note: Callable[[], None]) -> None:
        """Call `note` after each group; it must be quick."""
        self._note = note

    @contextmanager
    def make_way(self) -> Iterator[None]:
        """Leave a gap after each transaction meanwhile: somebody else of this process wants to write."""
        with self._way_lock:
            self._way_wanted += 1
        try:
            yield
        finally:
            with self._way_lock:
                self._way_wanted -= 1

    def catch_up(self) -> None:
        """Copy the rest of the WAL after the present transaction, so that it begins anew."""
        self._behind = True

    def depth(self) -> int:
        """How many operations wait."""
        return self._jobs.qsize()

    def held_up_s(self) -> float:
        """How long the present transaction has waited for another writer to end; 0.0 where none waits."""
        return time.monotonic() - self._began if self._waits else 0.0

    def kept_out_s(self) -> float:
        """How long no transaction has begun that should have, over as many tries as were given up; else 0.0."""
        since = self._kept_out_since
        return 0.0 if since is None else time.monotonic() - since

    def died(self) -> BaseException | None:
        """What ended the thread, if it has ended by itself: the store is of no more use to this process."""
        return self._died

    def close(self, limit_s: float) -> bool:
        """Carry out what is queued, then end the thread; whether it ended within `limit_s` seconds."""
        self._closed = True
        self._close_by = time.monotonic() + limit_s
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
        try:
            while not self._last or self._left:
                group = self._left or self._take()
                done, wakes = self._carry_out(group) if group else ([], set())
                answered = set(map(id, done))
                self._left = [job for job in group if id(job) not in answered]
                self._answer(done)  # before the wakes: whoever is woken finds the asker already answered
                for publish in self._publish:
                    publish(wakes)
                self._note()
                self._begin_wal_anew()
                self._leave_a_gap()
        except BaseException as error:  # noqa: BLE001 - the thread's death is the store's: every later call says so
            self._died = error
        finally:
            with suppress(sqlite3.Error):
                self._conn.close()

    def _take(self) -> list[_Job]:
        """Wait for work; everything that is queued, or up to the word that it was the last."""
        group: list[_Job] = []
        job = self._wait()
        while job is not None:
            group.append(job)
            if len(group) >= _GROUP_MAX:
                return group
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return group
        self._last = True
        return group

    def _wait(self) -> _Job | None:
        """The next job; meanwhile, tell those who wait for work or stops when another process has written."""
        began = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=self._look_s())
            except queue.Empty:
                self._look()
                if self._ballast is not None:
                    self._ballast.tend()
            else:
                self._look()
                now = time.monotonic()
                if now - began >= _GAP_S:
                    self._busy_since = now
                return job

    def _look(self) -> None:
        """`data_version` of this connection moves when any other connection has committed."""
        now = time.monotonic()
        if now - self._looked_at < self._look_s():
            return
        self._looked_at = now
        with suppress(sqlite3.Error):
            version = self._conn.execute("PRAGMA data_version").fetchone()[0]
            if self._version not in (None, version):
                self._publish[0]({READY_TOPIC, CONTROL_TOPIC})
            self._version = version

    def _look_s(self) -> float:
        return _TOLD_LOOK_S if self._told() and time.monotonic() >= self._told_from else _LOOK_S

    def _begin_wal_anew(self) -> None:
        """When it is asked for: waits for readers, who are brief, and not at all for other writers."""
        if self._behind:
            self._behind = False
            with suppress(sqlite3.Error):
                self._conn.execute(f"PRAGMA busy_timeout = {_CATCH_UP_MS}")
                self._conn.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            with suppress(sqlite3.Error):
                self._conn.execute("PRAGMA busy_timeout = 0")

    def _leave_a_gap(self) -> None:
        """Let others write, if they are there and this thread has been writing without a gap for long enough."""
        if self._way_wanted or (time.monotonic() - self._busy_since >= _STINT_S and self._others()):
            time.sleep(_GAP_S)
            self._busy_since = time.monotonic()

    def _carry_out(self, group: list[_Job]) -> tuple[list[_Job], set[str]]:
        """Carry out as many of `group` as fit into one stint; these, with their answers, and their wakes."""
        if self._ballast is None:
            return self._attempt(group)
        self._ballast.tend()
        if not self._ballast.low():
            try:
                return self._attempt(group)
            except _Full:
                self._ballast.free()
        return self._carry_out_endings(group, self._ballast)

    def _carry_out_endings(self, group: list[_Job], ballast: Ballast) -> tuple[list[_Job], set[str]]:
        """As `_carry_out`, on a full disk: what begins or goes on is refused."""
        refused = [job for job in group if job.name in _REFUSED]
        for job in refused:
            job.error = StoreUnavailable(f"{job.name}: {ballast.why}", full=True, remedy=ballast.remedy)
        endings = [job for job in group if job.name not in _REFUSED]
        while endings:
            try:
                done, wakes = self._attempt(endings)
            except _Full as full:
                if len(endings) == 1:
                    detail = f"{endings[0].name}: {ballast.why}, and there is no room for this ({full.__cause__})"
                    endings[0].error = StoreUnavailable(detail, full=True, remedy=ballast.remedy)
                    return refused + endings, set()
                endings = endings[:1]  # what is smaller may fit; the others come next
            else:
                return refused + done, wakes
        return refused, set()

    def _attempt(self, group: list[_Job]) -> tuple[list[_Job], set[str]]:
        """One transaction; if an operation raises, those before it once more, and that one's error is its answer.

        Raises:
            _Full: The disk is full, nothing was done.
        """
        try:
            return self._commit(group)
        except _Undone as undone:
            if undone.job is None:
                for job in group:
                    job.error = _translated(job.name, undone.error)
                return group, set()
            before = group[: group.index(undone.job)]
            done, wakes = self._attempt(before) if before else ([], set())
            if len(done) == len(before):
                undone.job.error = _translated(undone.job.name, undone.error)
                done = [*done, undone.job]
            return done, wakes

    def _commit(self, group: list[_Job]) -> tuple[list[_Job], set[str]]:
        """Carry out the first of `group` as one transaction.

        Raises:
            _Undone: It was rolled back.
            _Full: So it was, because the disk is full.
        """
        current: _Job | None = None
        done: list[_Job] = []
        try:
            self._began = time.monotonic()
            self._kept_out_since = self._kept_out_since or self._began
            self._waits = True
            try:
                begin(self._conn, self._until)
                self._kept_out_since = None
            finally:
                self._waits = False
            stint = time.monotonic() + _STINT_S
            tx = Tx(self._conn, self._clock)
            tx.let_time_pass()
            for current in group:
                current.error = None
                current.result = current.operation(tx)
                done.append(current)
                if time.monotonic() >= stint:
                    break
            current = None
            self._conn.execute("COMMIT")
        except BaseException as error:
            self._roll_back(error)
            if self._ballast is not None and (says_full(error) or (may_be_full(error) and self._ballast.full())):
                raise _Full from error
            raise _Undone(current, error) from error
        return done, tx.wakes

    def _until(self) -> float:
        """Until when the present transaction may wait for other writers; less once the store is closing."""
        return min(self._close_by, self._began + BUSY_TIMEOUT_S)

    def _roll_back(self, error: BaseException) -> None:
        """Back to a connection that is outside of any transaction: this one, or another."""
        with suppress(sqlite3.Error):
            self._conn.execute("ROLLBACK")
        if self._reopen is None or not (self._conn.in_transaction or breaks_connection(error)):
            return
        with suppress(StoreError, sqlite3.Error, OSError):
            fresh = self._reopen()
            with suppress(sqlite3.Error):
                self._conn.close()
            self._conn, self._version = fresh, None

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
