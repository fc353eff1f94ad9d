"""Threads that read, each with a connection of its own. Reads are short, so that the WAL can be checkpointed."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.stores.sqlite.connect import connect
from holdfast.stores.sqlite.tx import Tx

T = TypeVar("T")

_THREADS: Final = 3


class Readers:
    """A pool of reading connections."""

    def __init__(self, path: str, clock: Clock) -> None:
        """Open nothing yet: each thread opens its connection at its first read."""
        self._path = path
        self._clock = clock
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="holdfast-reader")

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
        """End the threads and close their connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for conn in self._connections:
                with suppress(sqlite3.Error):
                    conn.close()

    def _read(self, name: str, operation: Callable[[Tx], T]) -> T:
        try:
            conn = self._connection()
            conn.execute("BEGIN")
            try:
                return operation(Tx(conn, self._clock))
            finally:
                conn.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{name}: {type(error).__name__}: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        conn: sqlite3.Connection | None = getattr(self._local, "conn", None)
        if conn is None:
            conn = self._local.conn = connect(self._path, readonly=True)
            with self._lock:
                self._connections.append(conn)
        return conn
