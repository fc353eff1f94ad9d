"""Threads that read, each with a connection of its own. Reads are short, so that the WAL can be checkpointed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

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
