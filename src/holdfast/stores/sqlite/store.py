"""The store on SQLite: one writer thread with group commit, a few reading threads, wakes within the process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Final, TypeVar

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Reason, State
from holdfast.ports.clock import Clock, SystemClock
from holdfast.ports.store import (
    UNCAPPED,
    Appended,
    Claim,
    Created,
    Ending,
    Fence,
    Held,
    InputItem,
    NewRun,
    Page,
    Reaped,
    Renewal,
    Roster,
    RunningCaps,
    RunRecord,
    SessionRecord,
    Status,
    Stopped,
    Wake,
    WorkerRecord,
    run_topic,
    whole_topic,
)
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite import claiming, creating, reading, reaping, sessions, sweeping, writing
from holdfast.stores.sqlite.ballast import Ballast
from holdfast.stores.sqlite.checkpoints import Checkpoints
from holdfast.stores.sqlite.connect import (
    BUSY_TIMEOUT_S,
    MEMORY,
    SCHEMA_VERSION,
    connect,
    connect_to_write,
    file_of,
)
from holdfast.stores.sqlite.heart import SqliteHeart, WriterHeart
from holdfast.stores.sqlite.lock import OwnerLock
from holdfast.stores.sqlite.neighbours import Neighbours
from holdfast.stores.sqlite.opening import make_directory, prepared
from holdfast.stores.sqlite.place import Place
from holdfast.stores.sqlite.readers import Readers
from holdfast.stores.sqlite.tx import Tx
from holdfast.stores.sqlite.writer import Writer
from holdfast.stores.wakes import Hub

T = TypeVar("T")

_TAIL_POLL_S: Final = 1.0
_KEPT_OUT_S: Final = 2.0  # without a write, while there is one to do: what else is locked is a matter of milliseconds
_CLOSE_S: Final = BUSY_TIMEOUT_S + 1


class SqliteStore:
    """`sqlite:///file` or `sqlite://:memory:` (the same class on one connection). See `holdfast.ports.store`."""

    questions: None = None  # its one worker is beside whoever asks

    def __init__(
        self,
        path: str,
        clock: Clock,
        writer: Writer,
        readers: Readers | None,
        lock: OwnerLock | None,
        hub: Hub,
        neighbours: Neighbours | None,
        ballast: Ballast | None = None,
    ) -> None:
        """Use `open`."""
        self._ballast = ballast
        self._checkpoints = None
        if ballast is not None:
            self._checkpoints = Checkpoints(path, partial(connect, path), ballast, writer.catch_up)
            writer.hear(self._checkpoints.note)
        self._neighbours = neighbours
        self.path = path
        self._clock = clock
        self._writer = writer
        self._readers = readers
        self._lock = lock
        self._place = None if lock is None else Place(path)
        self._hub = hub

    @classmethod
    async def open(cls, url: str, *, clock: Clock | None = None, own: bool = False) -> SqliteStore:
        """Open or make the database.

        Args:
            url: As for `file_of`.
            clock: Replaced by tests.
            own: Take the lock of the one process whose worker serves this file, and expire the leases of the
                owner before.

        Raises:
            StoreError: It cannot be used; says why and what to do.
        """
        return await _in_thread(partial(cls._open, url, clock or SystemClock(), own))

    @classmethod
    def _open(cls, url: str, clock: Clock, own: bool) -> SqliteStore:
        path = file_of(url)
        lock, ballast = None, None
        if path != MEMORY:
            make_directory(path)
            lock = OwnerLock(path) if own else None
            ballast = Ballast(path)
        try:
            conn = prepared(path, clock, ballast)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        if own and ballast is not None:
            ballast.lay()
        hub = Hub()
        if ballast is None:
            store = cls(path, clock, Writer(conn, clock, [hub.publish]), None, lock, hub, None)
        else:
            neighbours = Neighbours(path, hub)
            writer = Writer(
                conn,
                clock,
                [hub.publish, neighbours.publish],
                others=lambda: neighbours.attached,
                told=lambda: neighbours.tell,
                ballast=ballast,
                reopen=partial(connect_to_write, path),
            )
            store = cls(path, clock, writer, Readers(path, clock), lock, hub, neighbours, ballast)
        if own:
            store._disown_all()
        return store

    def _disown_all(self) -> None:
        try:
            self._writer.do_sync("disown", lambda tx: claiming.disown(tx, None), BUSY_TIMEOUT_S)
        except StoreUnavailable as error:
            self._close()
            raise StoreError(f"cannot open {self.path}: {error.detail}; {error.remedy}") from error

    @property
    def lock_fd(self) -> int | None:
        """The owner's lock, for a worker process to inherit: the file is served for as long as either lives."""
        return None if self._lock is None else self._lock.fd

    @property
    def durability(self) -> str:
        """What survives what."""
        return "none: in memory" if self.path == MEMORY else "fsync at every commit"

    async def create(self, new: NewRun) -> Created:
        """See the port."""
        return await self._writer.do("create", lambda tx: creating.create(tx, new))

    async def claim(self, worker: str, n: int, lease_ms: int, caps: RunningCaps = UNCAPPED) -> list[Claim]:
        """See the port."""
        try:
            return await self._writer.do("claim", lambda tx: claiming.claim(tx, worker, n, lease_ms, caps))
        except StoreUnavailable as error:
            if error.full:  # nothing can be begun: that is no fault to repeat, but a queue that waits
                return []
            raise

    async def renew(self, worker: str, held: Sequence[Held], lease_ms: int) -> list[Renewal]:
        """See the port."""
        return await self._writer.do("renew", lambda tx: claiming.renew(tx, held, lease_ms))

    async def append(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes | None = None,
        consumed: int = 0,
    ) -> Appended:
        """See the port."""
        return await self._writer.do(
            "append", lambda tx: writing.append(tx, key, fence, base, events, checkpoint, consumed)
        )

    async def finish(self, key: RunKey, fence: Fence, base: int, events: Sequence[bytes], ending: Ending) -> Appended:
        """See the port."""
        return await self._writer.do("finish", lambda tx: writing.finish(tx, key, fence, base, events, ending))

    async def park(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes,
        approval_ms: int,
    ) -> Appended:
        """See the port."""
        return await self._writer.do(
            "park", lambda tx: writing.park(tx, key, fence, base, events, checkpoint, approval_ms)
        )

    async def resume(self, key: RunKey, decisions: Sequence[dict[str, Any]], base: int | None = None) -> Appended:
        """See the port."""
        return await self._writer.do("resume", lambda tx: writing.resume(tx, key, decisions, base))

    async def decide(self, key: RunKey, fields: Mapping[str, Any], base: int) -> Appended:
        """See the port."""
        return await self._writer.do("decide", lambda tx: writing.decide_some(tx, key, fields, base))

    async def release(self, key: RunKey, fence: Fence) -> Appended:
        """See the port."""
        return await self._writer.do("release", lambda tx: claiming.release(tx, key, fence))

    async def request_stop(self, key: RunKey, reason: Reason, by: str) -> Stopped:
        """See the port."""
        return await self._writer.do("request_stop", lambda tx: creating.request_stop(tx, key, reason, by))

    async def listen(self, keys: Sequence[RunKey], lease_ms: int) -> list[RunKey]:
        """See the port."""
        return await self._writer.do("listen", lambda tx: creating.listen(tx, keys, lease_ms))

    async def steer(self, key: RunKey, text: str, idempotency_key: str = "", *, unread_max: int = 16) -> Status:
        """See the port."""
        return await self._writer.do("steer", lambda tx: writing.steer(tx, key, text, idempotency_key, unread_max))

    async def inbox(self, key: RunKey) -> list[InputItem]:
        """See the port."""
        return await self._read("inbox", lambda tx: writing.inbox(tx, key))

    async def edit_input(self, key: RunKey, text: str) -> Status:
        """See the port."""
        return await self._writer.do("edit_input", lambda tx: writing.edit_input(tx, key, text))

    async def reap(self, limit: int, grace_ms: int) -> list[Reaped]:
        """See the port."""
        gap, reaped = await self._writer.do("reap", partial(_reap_begins, limit=limit))
        if gap:
            return reaped
        try:
            for each in await self._read("reap", lambda tx: reaping.due(tx, limit, grace_ms)):
                done = await self._writer.do("reap", partial(reaping.settle, each=each, grace_ms=grace_ms))
                if done is not None:
                    reaped.append(done)
        except StoreUnavailable:
            if not reaped:
                raise
        return reaped  # also where the rest failed: the caller tells what was done, and reaps again

    async def next_due_ms(self) -> int | None:
        """See the port."""
        return await self._read("next_due", reaping.next_due)

    async def disown(self, workers: Sequence[str] | None = None) -> int:
        """See the port."""
        return await self._writer.do("disown", lambda tx: claiming.disown(tx, workers))

    async def bury(self, worker: str, blamed: RunKey | None = None) -> list[Reaped]:
        """See the port."""
        return await self._writer.do("bury", lambda tx: reaping.bury(tx, worker, blamed))

    async def read(self, key: RunKey, after: int, limit: int = 500, epoch: int | None = None) -> Page:
        """See the port."""
        work = partial(reading.read, key=key, after=after, limit=limit, epoch=epoch)
        if self._readers is None:
            return await self._writer.do("read", work)
        return await self._readers.do_together("read", work)

    async def tail(self, key: RunKey, after: int, limit: int = 500) -> AsyncIterator[Page]:
        """See the port."""
        with self._hub.subscribe(run_topic(key)) as wake:
            while True:
                page = await self.read(key, after, limit)
                yield page
                if page.status is not Status.OK or page.resync:
                    return
                after += len(page.events)
                if page.state.terminal and after >= page.head:
                    return
                if after >= page.head:
                    await wake.wait(_TAIL_POLL_S)

    async def get(self, key: RunKey) -> RunRecord | None:
        """See the port."""
        return await self._read("get", lambda tx: reading.get(tx, key))

    async def list_runs(
        self,
        tenant: str,
        *,
        session: str | None = None,
        state: State | None = None,
        limit: int = 50,
        after: str = "",
    ) -> list[RunRecord]:
        """See the port."""
        return await self._read("list", lambda tx: reading.list_runs(tx, tenant, session, state, limit, after))

    async def roster(self, tenant: str, since: int, known: Sequence[str]) -> Roster:
        """See the port."""
        return await self._read("roster", lambda tx: reading.roster(tx, tenant, since, known))

    async def active(self, tenant: str, session: str) -> RunRecord | None:
        """See the port."""
        return await self._read("active", lambda tx: sessions.active(tx, tenant, session))

    async def history(self, tenant: str, session: str) -> list[HistoryEntry]:
        """See the port."""
        return await self._read("history", lambda tx: sessions.history(tx, tenant, session))

    async def list_sessions(self, tenant: str, *, limit: int = 50, after: str = "") -> list[SessionRecord]:
        """See the port."""
        return await self._read("sessions", lambda tx: sessions.list_sessions(tx, tenant, limit, after))

    async def get_session(self, tenant: str, session: str) -> SessionRecord | None:
        """See the port."""
        return await self._read("session", lambda tx: sessions.get_session(tx, tenant, session))

    async def delete_session(self, tenant: str, session: str, by: str) -> Status:
        """See the port."""
        done = await self._writer.do("delete_session", lambda tx: sessions.delete_session(tx, tenant, session, by))
        self._forget()
        return done

    async def forget(self, key: RunKey) -> Status:
        """See the port."""
        return await self._writer.do("forget", lambda tx: sweeping.forget(tx, key))

    async def workers(self) -> list[WorkerRecord]:
        """See the port."""
        return await self._read("workers", reading.workers)

    async def health(self) -> dict[str, Any]:
        """See the port; never raises, a failure is the fact `error`."""
        facts: dict[str, Any] = {
            "kind": "sqlite",
            "path": self.path,
            "sqlite": sqlite3.sqlite_version,
            "schema": SCHEMA_VERSION,
            "durability": self.durability,
            "writes_waiting": self._writer.depth(),
        }
        broken = self.broken()
        if broken:
            return facts | {"error": broken}
        try:
            facts |= await self._read("health", reading.facts)
            if self._ballast is not None and self._ballast.low():
                return facts | {"low_space": True, "error": f"{self._ballast.why}; {self._ballast.remedy}"}
            if (kept_out_s := self._writer.kept_out_s()) > _KEPT_OUT_S:
                why = f"nothing could be written for {kept_out_s:.0f} s: another process has {self.path} locked"
                return facts | {"error": f"{why}; end its transaction"}
            return facts
        except Exception as error:  # noqa: BLE001 - health reports, it does not fail
            return facts | {"error": f"{type(error).__name__}: {error}"}

    def held_up_s(self) -> float:
        """How long a write of this process has waited for another process to end its transaction."""
        return self._writer.held_up_s()

    def broken(self) -> str:
        """What has ended that only a new process can begin again, or ""."""
        died = self._writer.died()
        if died is not None:
            return f"the writer has ended: {type(died).__name__}: {died}"
        return "" if self._place is None else self._place.lost()

    async def sweep(self, *, older_than_ms: int, bytes_max: int, limit: int = 100) -> int:
        """See the port."""
        gone, deleted = await sweeping.sweep(self._read, self._writer.do, older_than_ms, bytes_max, limit)
        if deleted:
            self._forget()
        return gone

    def _forget(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.forget()

    def subscribe(self, topic: str) -> AbstractContextManager[Wake]:
        """See the port."""
        return self._hub.subscribe(whole_topic(topic))

    def heart(self) -> SqliteHeart | WriterHeart:
        """See the port."""
        if self._ballast is None:
            return WriterHeart(self._writer)
        return SqliteHeart(self.path, self._clock, self._ballast, self._writer.make_way)

    async def close(self) -> None:
        """See the port."""
        await _in_thread(self._close)

    def _close(self) -> None:
        self._writer.close(_CLOSE_S)
        if self._checkpoints is not None:
            self._checkpoints.close()
        if self._readers is not None:
            self._readers.close()
        if self._neighbours is not None:
            self._neighbours.close()
        if self._place is not None:
            self._place.close()
        if self._lock is not None:
            with suppress(OSError):
                self._lock.release()

    async def _read(self, name: str, operation: Callable[[Tx], T]) -> T:
        if self._readers is None:
            return await self._writer.do(name, operation)
        return await self._readers.do(name, operation)


async def _in_thread(work: Callable[[], T]) -> T:
    """Opening and closing may wait for a lock, at most busy_timeout: on a thread of their own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="holdfast-open")
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        pool.shutdown(wait=False)


def _reap_begins(tx: Tx, limit: int) -> tuple[int, list[Reaped]]:
    """Note that somebody reaps; the time that has to be left out because nobody did, and forgotten ends."""
    gap = tx.let_time_pass()
    tx.reaped()
    return gap, reaping.forgotten(tx, limit)
