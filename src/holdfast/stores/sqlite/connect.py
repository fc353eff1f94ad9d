"""Connections to one database file, and its schema."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Final

from holdfast.ports.clock import Clock
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.faults import code_of, is_busy

SCHEMA_VERSION: Final = 3
MEMORY: Final = ":memory:"
BUSY_TIMEOUT_S: Final = 7.0  # the supervisor's stall bound + 2 s: who froze inside a transaction is killed before
_WAL_PAGES_MAX: Final = 4000  # a net: the checkpoint thread begins far below
_WAL_BYTES_KEPT: Final = 4_000_000
_TRY_S: Final = 0.0005
_TRY_MAX_S: Final = 0.002
_SQLITE_MIN: Final = (3, 35, 0)


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
        conn.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten, and not left in free pages
        if path != MEMORY:
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES_MAX}")
            conn.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        if readonly:
            conn.execute("PRAGMA query_only = ON")
    except sqlite3.Error as error:
        raise explained(path, error) from error
    return conn


def connect_to_write(path: str) -> sqlite3.Connection:
    """A connection whose transactions begin with `begin`: SQLite itself does not wait on it.

    Raises:
        StoreError: As for `connect`.
    """
    conn = connect(path)
    conn.execute("PRAGMA busy_timeout = 0")
    return conn


def begin(conn: sqlite3.Connection, until: Callable[[], float]) -> None:
    """BEGIN IMMEDIATE, asked again every two milliseconds until the monotonic time `until()`.

    SQLite's own handler sleeps up to 100 ms between two tries, and so misses the gaps that a busy writer leaves.
    """
    pause = _TRY_S
    while True:
        try:
            conn.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if not is_busy(error) or time.monotonic() >= until():
                raise
            time.sleep(pause)
            pause = min(_TRY_MAX_S, pause * 2)
        else:
            return


def explained(path: str, error: sqlite3.Error) -> StoreError:
    """Why the database at `path` cannot be opened, with the remedy."""
    match code_of(error):
        case sqlite3.SQLITE_NOTADB:
            text = f"{path} is no SQLite database; give another file with --store, nothing was changed in this one"
        case sqlite3.SQLITE_CORRUPT:
            text = (
                f"{path} is corrupt ({error}); give another file or a backup with --store, and keep this one: "
                f"sqlite3 {path} .recover may read what is left"
            )
        case sqlite3.SQLITE_FULL:
            text = f"cannot open {path}: its disk is full; free some space there"
        case sqlite3.SQLITE_BUSY:
            text = (
                f"cannot open {path}: another process has been writing to it for {BUSY_TIMEOUT_S:.0f} s; end that one"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            text = f"cannot write to {path}: {error}; check the permissions of the file and of its directory"
        case _:
            text = f"cannot open {path}: {error}; check the path and its permissions"
    return StoreError(text)


def prepare(conn: sqlite3.Connection, path: str, clock: Clock) -> None:
    """Bring the schema to this version, and the timers into this boot of the machine.

    Raises:
        StoreError: The file was written by a later version.
    """
    limit = time.monotonic() + BUSY_TIMEOUT_S
    begin(conn, lambda: limit)
    try:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        _check_version(version, path)
        scripts = ["schema.sql"] if version == 0 else [f"from_{v}.sql" for v in range(version, SCHEMA_VERSION)]
        for script in scripts:
            for statement in _statements(resources.files(__package__).joinpath(script).read_text("utf-8")):
                conn.execute(statement)
        if scripts:
            conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _note_boot(conn, clock)
        conn.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have rolled back already
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
            "deadline_due = deadline_due + :gap, stop_due = stop_due + :gap, listener_due = listener_due + :gap "
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
            f"store is {url!r}; use sqlite:///holdfast.db, sqlite:////absolute/path.db, "
            "sqlite://:memory: or redis://host:port/db"
        )
    return str(Path(rest[1:]))
