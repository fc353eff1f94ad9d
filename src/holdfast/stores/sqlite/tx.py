"""One transaction as the operations see it: a connection, one moment of both clocks, and the wakes it will cause."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from holdfast.ports.clock import Clock
from holdfast.stores.composing import REAP_GAP_MS_MAX


class Tx:
    """A write transaction. Operations read the row they decide about in it, so nothing can come in between."""

    __slots__ = ("_conn", "now", "wakes", "wall")

    def __init__(self, conn: sqlite3.Connection, clock: Clock) -> None:
        """Take the moment at which everything in this transaction happens."""
        self._conn = conn
        self.now = clock.now_ms()
        self.wall = clock.wall_ms()
        self.wakes: set[str] = set()

    def one(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """The first row, or None."""
        row: sqlite3.Row | None = self._conn.execute(sql, values).fetchone()
        return row

    def all(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Every row; the statement bounds how many."""
        return self._conn.execute(sql, values).fetchall()

    def each(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """The rows one by one; the caller closes it before the transaction ends."""
        return self._conn.execute(sql, values)

    def run(self, sql: str, *values: Any) -> int:
        """Carry out a change; how many rows it touched."""
        return self._conn.execute(sql, values).rowcount

    def insert(self, sql: str, *values: Any) -> int:
        """Insert one row; its rowid."""
        return self._conn.execute(sql, values).lastrowid or 0

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Carry out a change once for each row."""
        self._conn.executemany(sql, rows)

    def let_time_pass(self) -> int:
        """Move every timer over a time in which nobody reaped; the gap in milliseconds, 0 where there was none.

        Lease time passes only while somebody reaps: after a pause of everybody, nobody is called dead.
        """
        row = self.one("SELECT value FROM meta WHERE key = 'reap_at'")
        gap = self.now - (row["value"] if row else self.now)
        if row is not None and 0 <= gap <= REAP_GAP_MS_MAX:
            return 0
        if gap:
            self.run(
                "UPDATE runs SET lease_due = lease_due + ?1, wait_due = wait_due + ?1, "
                "deadline_due = deadline_due + ?1, stop_due = stop_due + ?1, listener_due = listener_due + ?1 "
                "WHERE state IN ('queued', 'running', 'waiting')",
                gap,
            )
        self.reaped()
        return gap

    def reaped(self) -> None:
        """Note that somebody reaped now."""
        self.run("INSERT OR REPLACE INTO meta (key, value) VALUES ('reap_at', ?)", self.now)
