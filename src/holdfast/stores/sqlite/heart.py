"""Lease renewal for a heartbeat thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.clock import Clock
from holdfast.ports.store import Held, Renewal
from holdfast.stores.sqlite.claiming import renew, report
from holdfast.stores.sqlite.connect import connect
from holdfast.stores.sqlite.tx import Tx
from holdfast.stores.sqlite.writer import Writer

_WRITER_LIMIT_S: Final = 5.0


class SqliteHeart:
    """On a connection of its own, so that it waits for no other thread of this process."""

    def __init__(self, path: str, clock: Clock) -> None:
        """Open the connection."""
        self._conn = connect(path)
        self._clock = clock

    def renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        """See the port."""
        try:
            self._conn.execute("BEGIN IMMEDIATE")
            tx = Tx(self._conn, self._clock)
            answers = renew(tx, held, lease_ms)
            report(tx, worker, facts)
            self._conn.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._conn.execute("ROLLBACK")
            raise StoreUnavailable(f"renew: {type(error).__name__}: {error}") from error
        return answers

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
