"""Lease renewal for a heartbeat thread."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.ports.store import Held, Renewal
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.ballast import Ballast
from holdfast.stores.sqlite.claiming import renew, report
from holdfast.stores.sqlite.connect import BUSY_TIMEOUT_S, begin, connect_to_write
from holdfast.stores.sqlite.faults import breaks_connection, says_full
from holdfast.stores.sqlite.tx import Tx
from holdfast.stores.sqlite.writer import Writer

_WRITER_LIMIT_S: Final = 5.0


class SqliteHeart:
    """On a connection of its own, so that it waits for no other thread of this process."""

    def __init__(
        self, path: str, clock: Clock, ballast: Ballast, make_way: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Open the connection; `make_way` asks the writer of this process for gaps."""
        self._conn = connect_to_write(path)
        self._path = path
        self._clock = clock
        self._ballast = ballast
        self._make_way = make_way

    def renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        """See the port."""
        try:
            return self._renew(worker, held, lease_ms, facts)
        except sqlite3.Error as error:
            if not says_full(error) or self._ballast.low():
                raise StoreUnavailable(f"renew: {type(error).__name__}: {error}") from error
        self._ballast.free()
        try:
            return self._renew(worker, held, lease_ms, facts)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"renew: {type(error).__name__}: {error}", full=says_full(error)) from error

    def _renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        limit = time.monotonic() + BUSY_TIMEOUT_S
        try:
            with self._make_way():
                begin(self._conn, lambda: limit)
            tx = Tx(self._conn, self._clock)
            answers = renew(tx, held, lease_ms)
            report(tx, worker, facts)
            self._conn.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._conn.execute("ROLLBACK")
            if breaks_connection(error):
                self._reopen()
            raise
        return answers

    def _reopen(self) -> None:
        with suppress(StoreError, sqlite3.Error):
            fresh = connect_to_write(self._path)
            with suppress(sqlite3.Error):
                self._conn.close()
            self._conn = fresh

    def close(self) -> None:
        """See the port."""
        self._conn.close()


class WriterHeart:
    """For `:memory:`, which has one connection only."""

    def __init__(self, writer: Writer) -> None:
        """Share the writer."""
        self._writer = writer

    def renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        """See the port."""

        def both(tx: Tx) -> list[Renewal]:
            report(tx, worker, facts)
            return renew(tx, held, lease_ms)

        return self._writer.do_sync("renew", both, _WRITER_LIMIT_S)

    def close(self) -> None:
        """Nothing to give back."""
