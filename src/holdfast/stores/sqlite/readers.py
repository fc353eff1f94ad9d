"""Threads that read, each with a connection of its own. Reads are short, so that the WAL can be checkpointed.

One commit of many runs wakes the readers of all of them. What they ask for in one turn of their loop is read by one
thread in one transaction: a hop to a thread and back for each of them cost more than the reading.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.connect import connect
from holdfast.stores.sqlite.faults import breaks_connection
from holdfast.stores.sqlite.tx import Tx

T = TypeVar("T")

_THREADS: Final = 3
_START_S: Final = 10.0
_CLOSE_S: Final = 2.0
_CLOSE_POLL_S: Final = 0.005
_TOGETHER_MAX: Final = 32  # reads of one thread; more go to the next
_STINT_S: Final = 0.002  # of reads that are carried out together; the rest comes after these are answered

_Asked = tuple[Callable[[Tx], Any], "asyncio.Future[Any]"]


class Readers:
    """A pool of reading connections."""

    def __init__(self, path: str, clock: Clock) -> None:
        """Start the threads, so that their number is fixed; each opens its connection at its first read."""
        self._path = path
        self._clock = clock
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._reading = 0
        self._asked: dict[asyncio.AbstractEventLoop, list[_Asked]] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="holdfast-reader")
        self._all_there = threading.Barrier(_THREADS)
        for _ in range(_THREADS):  # a pool starts a thread where none is idle: so each has to wait for the others
            self._pool.submit(self._all_there.wait, _START_S)

    async def do(self, name: str, operation: Callable[[Tx], T]) -> T:
        """Carry out `operation` on one consistent snapshot.

        Raises:
            StoreUnavailable: The database did not answer, or the store is closed.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, name, operation)
        except RuntimeError as error:  # the pool is shut down
            raise StoreUnavailable(f"{name}: the store is closed") from error

    async def do_together(self, name: str, operation: Callable[[Tx], T]) -> T:
        """As `do`, for what is brief: it is carried out with whatever else is asked for in this turn of the loop.

        Raises:
            StoreUnavailable: As `do`.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        asked = self._asked.setdefault(loop, [])
        asked.append((operation, waiter))
        if len(asked) == 1:
            loop.call_soon(self._hand_over, loop, name)
        return await waiter

    def _hand_over(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        everything = self._asked.pop(loop)
        for start in range(0, len(everything), _TOGETHER_MAX):
            asked = everything[start : start + _TOGETHER_MAX]
            try:
                work = self._pool.submit(self._read_together, name, asked, loop)
            except RuntimeError:  # the pool is shut down
                _resolve([(waiter, StoreUnavailable(f"{name}: the store is closed")) for _, waiter in asked])
            else:
                work.add_done_callback(partial(_refuse_rest, name, asked, loop))

    def _read_together(self, name: str, asked: list[_Asked], loop: asyncio.AbstractEventLoop) -> None:
        while asked:
            found: list[Any]
            try:
                found = self._read(name, partial(_stint, asked))
            except StoreUnavailable as error:
                found = [error]  # of one of them, perhaps: the others are asked again
                if len(asked) > 1:
                    found = [self._try(name, operation) for operation, _ in asked]
            answered = [(waiter, answer) for (_, waiter), answer in zip(asked, found, strict=False)]
            with suppress(RuntimeError):  # that loop has closed: nobody waits there any more
                loop.call_soon_threadsafe(_resolve, answered)
            asked = asked[len(found) :]

    def _try(self, name: str, operation: Callable[[Tx], T]) -> T | Exception:
        try:
            return self._read(name, operation)
        except Exception as error:  # noqa: BLE001 - it is the answer
            return error

    def close(self) -> None:
        """End the threads and close their connections; a read that goes on is interrupted, and waited for briefly."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._all_there.abort()
        with self._lock:
            connections, self._connections = self._connections, []
        for conn in connections:
            with suppress(sqlite3.Error):
                conn.interrupt()
        until = time.monotonic() + _CLOSE_S
        while self._reading and time.monotonic() < until:
            time.sleep(_CLOSE_POLL_S)
        for conn in connections if not self._reading else ():
            with suppress(sqlite3.Error):
                conn.close()

    def _read(self, name: str, operation: Callable[[Tx], T]) -> T:
        with self._lock:
            self._reading += 1
        try:
            conn = self._connection()
            try:
                conn.execute("BEGIN")
                return operation(Tx(conn, self._clock))
            except sqlite3.Error as error:
                if breaks_connection(error):
                    self._forget(conn)
                raise
            finally:
                with suppress(sqlite3.Error):
                    conn.execute("ROLLBACK")
        except (sqlite3.Error, StoreError) as error:
            raise StoreUnavailable(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._reading -= 1

    def _forget(self, conn: sqlite3.Connection) -> None:
        """The next read of this thread opens another."""
        self._local.conn = None
        with self._lock, suppress(ValueError):
            self._connections.remove(conn)
        with suppress(sqlite3.Error):
            conn.close()

    def _connection(self) -> sqlite3.Connection:
        conn: sqlite3.Connection | None = getattr(self._local, "conn", None)
        if conn is None:
            conn = self._local.conn = connect(self._path, readonly=True)
            with self._lock:
                self._connections.append(conn)
        return conn


def _stint(asked: list[_Asked], tx: Tx) -> list[Any]:
    """The answers to the first of them, or what an operation of ours raised instead of one."""
    found: list[Any] = []
    until = time.monotonic() + _STINT_S
    for operation, _ in asked:
        try:
            found.append(operation(tx))
        except (sqlite3.Error, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - it is the answer
            found.append(error)
        if time.monotonic() >= until:
            break
    return found


def _resolve(answered: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for waiter, answer in answered:
        if waiter.done():  # cancelled, because whoever asked has gone; or answered before the rest failed
            continue
        if isinstance(answer, BaseException):
            waiter.set_exception(answer)
        else:
            waiter.set_result(answer)


def _refuse_rest(name: str, asked: list[_Asked], loop: asyncio.AbstractEventLoop, work: Future[None]) -> None:
    """Answer those without an answer: the store was closed before they were begun, or reading failed as a whole."""
    if work.cancelled():
        error: BaseException = StoreUnavailable(f"{name}: the store is closed")
    elif (failed := work.exception()) is not None:
        error = failed
    else:
        return
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(_resolve, [(waiter, error) for _, waiter in asked])
