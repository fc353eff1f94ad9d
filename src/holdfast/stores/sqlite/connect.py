"""Connections to one database file, and its schema."""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path
from typing import Final

from holdfast.ports.clock import Clock

SCHEMA_VERSION: Final = 1
MEMORY: Final = ":memory:"
BUSY_TIMEOUT_S: Final = 7.0  # the supervisor's stall bound + 2 s: who froze inside a transaction is killed before
_WAL_PAGES_MAX: Final = 1000
_SQLITE_MIN: Final = (3, 35, 0)


class StoreError(Exception):
    """The database cannot be used; the text names the file, what is wrong and the remedy."""


def connect(path: str, *, readonly: bool = False) -> sqlite3.Connection:
    """Open one connection, in autocommit: transactions are begun by hand.

    Raises:
        StoreError: The file cannot be opened, or is no database.
    """
    if sqlite3.sqlite_version_info < _SQLITE_MIN:
        raise StoreError(f"SQLite is {sqlite3.sqlite_version}, 3.35 or later is needed; upgrade Python or its sqlite3")
    try:
        conn = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        conn.row_factory = sqlite3.Row
        conn.execute("PRAGMA synchronous = FULL")
        if path != MEMORY:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES_MAX}")
        if readonly:
            conn.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise StoreError(f"cannot open {path}: {error}; check the path and its permissions") from error
    return conn


def prepare(conn: sqlite3.Connection, path: str, clock: Clock) -> None:
    """Bring the schema to this version, and the timers into this boot of the machine.

    Raises:
        StoreError: The file was written by a later version.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        _check_version(version, path)
        if version == 0:
            for statement in _statements(resources.files(__package__).joinpath("schema.sql").read_text("utf-8")):
                conn.execute(statement)
            conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _note_boot(conn, clock)
        conn.execute("COMMIT")
    except BaseException:
        conn.execute("ROLLBACK")
        raise


def _check_version(version: int, path: str) -> None:
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} has schema version {version}, this Holdfast knows {SCHEMA_VERSION}; upgrade Holdfast")


def _note_boot(conn: sqlite3.Connection, clock: Clock) -> None:
    row = conn.execute("SELECT value FROM meta WHERE key = 'boot_id'").fetchone()
    if row is not None and row["value"] != clock.boot_id():
        # Another boot's clock: whatever it says, let_time_pass sees a reap_at in the future and moves the timers.
        conn.execute(
            "UPDATE runs SET lease_due = lease_due + :gap, wait_due = wait_due + :gap, "
            "deadline_due = deadline_due + :gap, stop_due = stop_due + :gap "
            "WHERE state IN ('queued', 'running', 'waiting')",
            {"gap": clock.now_ms() - _reap_at(conn, clock)},
        )
        conn.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('reap_at', ?)", (clock.now_ms(),))
    conn.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('boot_id', ?)", (clock.boot_id(),))


def _reap_at(conn: sqlite3.Connection, clock: Clock) -> int:
    row = conn.execute("SELECT value FROM meta WHERE key = 'reap_at'").fetchone()
    return int(row["value"]) if row else clock.now_ms()


def _statements(script: str) -> list[str]:
    """The script's statements; sqlite3.executescript would commit the transaction."""
    found, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found


def file_of(url: str) -> str:
    """`sqlite:///file` or `sqlite:////absolute/file` as a path, `sqlite://:memory:` as `:memory:`.

    Raises:
        StoreError: Not one of these.
    """
    rest = url.removeprefix("sqlite://")
    if rest == MEMORY:
        return MEMORY
    if rest == url or not rest.startswith("/") or len(rest) < 2:
        raise StoreError(
            f"store is {url!r}; use sqlite:///holdfast.db, sqlite:////absolute/path.db or sqlite://:memory:"
        )
    return str(Path(rest[1:]))
