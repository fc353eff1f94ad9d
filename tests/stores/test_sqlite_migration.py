"""A database of an earlier version goes on with everything that is in it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from holdfast.ports.clock import SystemClock
from holdfast.stores.sqlite import SqliteStore
from holdfast.stores.sqlite.connect import SCHEMA_VERSION
from holdfast.testing.build import new_run

HERE = Path(__file__).parent


def _shape(path: Path) -> dict[str, object]:
    """Columns of each table, and the statement of each index."""
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        rows = conn.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
        columns = {n: sorted(conn.execute(f"PRAGMA table_info({n})")) for kind, n, _ in rows if kind == "table"}
        named = {n: sorted(c[1:] for c in found) for n, found in columns.items()}
        return named | {n: " ".join(sql.split()) for kind, n, sql in rows if kind == "index"}


async def _make(path: Path) -> None:
    store = await SqliteStore.open(f"sqlite:///{path}")
    await store.close()


async def test_version_1_becomes_this_version(tmp_path: Path) -> None:
    """The same tables, columns and indexes as a new file has, and its runs can be claimed."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with closing(sqlite3.connect(old)) as conn:
        conn.executescript((HERE / "schema_1.sql").read_text())
        conn.execute(
            "INSERT INTO runs (tenant, id, session, generation, policy, body_hash, deadline_ms, queue_timeout_ms, "
            "session_wait_ms, attempts_max, state, slot, rank, head, log_bytes, epoch, created_at, wait_due, "
            "deadline_due) "
            "VALUES ('local', 'r_1', 's', 1, 'supersede', '', 1, 1, 1, 1, 'queued', 1, 1, 0, 0, 0, 1, ?, ?)",
            (SystemClock().now_ms() + 60_000,) * 2,
        )
        conn.execute("INSERT INTO turns VALUES ('local', 1)")
        conn.execute("INSERT INTO sessions VALUES ('local', 's', 1, 0, 1, 1)")
        conn.execute("PRAGMA user_version = 1")
        conn.commit()
    await _make(new)
    await _make(old)
    assert _shape(old) == _shape(new)
    store = await SqliteStore.open(f"sqlite:///{old}")
    (claim,) = await store.claim("w", 10, 1000)
    assert (claim.key.run, claim.before) == ("r_1", [])
    assert (await store.create(new_run("other"))).record is not None
    await store.close()


async def test_a_second_opening_changes_nothing(tmp_path: Path) -> None:
    """The migration is done once, in one transaction."""
    path = tmp_path / "holdfast.db"
    await _make(path)
    before = _shape(path)
    await _make(path)
    assert _shape(path) == before
