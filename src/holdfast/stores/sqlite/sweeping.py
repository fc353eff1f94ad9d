"""sweep: forgetting, in small steps. First a run is marked gone, then its log is deleted, last its row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from holdfast.domain.ids import SYNTHETIC_TENANT, RunKey
from holdfast.domain.runs import State
from holdfast.ports.store import Status
from holdfast.stores.composing import LINGER_MS
from holdfast.stores.sqlite.ending import changed
from holdfast.stores.sqlite.rows import find
from holdfast.stores.sqlite.tx import Tx

_CHUNK: Final = 1000
_STEPS_MAX: Final = 1000


class Do(Protocol):
    """Carries out an operation in a transaction, as the writer or as a reader."""

    def __call__(self, name: str, operation: Callable[[Tx], Any], /) -> Awaitable[Any]:
        """What the operation returned."""
        ...


async def sweep(read: Do, write: Do, older_than_ms: int, bytes_max: int, limit: int) -> tuple[int, bool]:
    """Its steps, searches by `read`, each change a short `write`: how many runs were marked, whether any log went."""
    found = await read("sweep", lambda tx: past(tx, older_than_ms, bytes_max, limit))
    if found:
        await write("sweep", lambda tx: mark(tx, found))
    runs, steps = await read("sweep", lambda tx: to_delete(tx, _STEPS_MAX)), 0
    for run in runs:
        more = True
        while more and (steps := steps + 1) <= _STEPS_MAX:
            more = await write("sweep", partial(delete_some, run=run))
    buried = await read("sweep", lambda tx: to_bury(tx, older_than_ms, limit))
    await write("sweep", lambda tx: bury(tx, buried, older_than_ms))
    return len(found), bool(runs)


def past(tx: Tx, older_than_ms: int, bytes_max: int, limit: int) -> list[int]:
    """At most `limit` ended runs to mark: too old, of a forgotten session, or the oldest above `bytes_max`.

    It looks through all rows, so ask where that holds up no writer: what is past stays so.
    """
    rows = tx.all(
        "SELECT r.* FROM runs r JOIN sessions s ON s.tenant = r.tenant AND s.id = r.session "
        "WHERE r.ended_at IS NOT NULL AND r.gone = 0 AND (r.ended_at <= ? OR "
        "(r.generation < s.generation AND r.ended_at <= ?)) ORDER BY r.ended_at LIMIT ?",
        tx.wall - older_than_ms,
        tx.wall - LINGER_MS,
        limit,
    )
    used = tx.one("SELECT coalesce(sum(log_bytes), 0) AS b FROM runs WHERE gone = 0")
    over = (used["b"] if used else 0) - sum(r["log_bytes"] for r in rows) - bytes_max
    marked = {r["n"] for r in rows}
    if over > 0:
        for row in tx.all(
            "SELECT * FROM runs WHERE ended_at IS NOT NULL AND gone = 0 ORDER BY ended_at LIMIT ?", limit
        ):
            if over <= 0 or len(rows) >= limit:
                break
            if row["n"] not in marked:
                rows.append(row)
                over -= row["log_bytes"]
    return [row["n"] for row in rows]


def mark(tx: Tx, runs: list[int]) -> None:
    """Mark these gone, but for what somebody else has marked, or dropped, since they were found."""
    for n in runs:
        row = tx.one("SELECT * FROM runs WHERE n = ? AND ended_at IS NOT NULL AND gone = 0", n)
        if row is not None:
            tx.run("UPDATE runs SET gone = ? WHERE n = ?", tx.wall, n)
            changed(tx, row)


def forget(tx: Tx, key: RunKey) -> Status:
    """Mark one ended run gone, and drop what it left in its session's history."""
    row = find(tx, key)
    if row is None:
        return Status.UNKNOWN
    if row["gone"]:
        return Status.GONE
    if not State(row["state"]).terminal:
        return Status.BUSY
    tx.run("DELETE FROM history WHERE tenant = ? AND session = ? AND run = ?", key.tenant, row["session"], row["n"])
    tx.run("UPDATE runs SET gone = ? WHERE n = ?", tx.wall, row["n"])
    changed(tx, row)
    return Status.OK


def to_delete(tx: Tx, limit: int) -> list[int]:
    """At most `limit` gone runs that still have something. It looks through all rows: never ask once for each run."""
    return [row["n"] for row in tx.all("SELECT n FROM runs WHERE gone > 0 AND head > 0 LIMIT ?", limit)]


def delete_some(tx: Tx, run: int) -> bool:
    """Delete at most a thousand events of a gone run; whether it may have more. Done twice, it changes nothing."""
    deleted = tx.run(
        "DELETE FROM events WHERE run = ?1 AND seq IN (SELECT seq FROM events WHERE run = ?1 ORDER BY seq LIMIT ?2)",
        run,
        _CHUNK,
    )
    if deleted == _CHUNK:
        return True
    tx.run("DELETE FROM specs WHERE run = ?", run)
    tx.run("DELETE FROM results WHERE run = ?", run)
    tx.run("DELETE FROM inbox WHERE run = ?", run)
    tx.run("DELETE FROM steers WHERE run = ?", run)
    tx.run("UPDATE runs SET head = 0, log_bytes = 0 WHERE n = ?", run)
    return False


def to_bury(tx: Tx, older_than_ms: int, limit: int) -> list[int]:
    """At most `limit` runs that have been gone for `older_than_ms`: until then a read answers GONE, not UNKNOWN."""
    rows = tx.all(
        "SELECT n FROM runs WHERE gone > 0 AND head = 0 AND gone <= CASE tenant WHEN ? THEN ? ELSE ? END LIMIT ?",
        SYNTHETIC_TENANT,  # nobody asks for them again
        tx.wall - LINGER_MS,
        tx.wall - max(older_than_ms, LINGER_MS),
        limit,
    )
    return [row["n"] for row in rows]


def bury(tx: Tx, runs: list[int], older_than_ms: int) -> None:
    """Drop the rows of these, and forgotten sessions that have none left."""
    for n in runs:
        tx.run("DELETE FROM runs WHERE n = ? AND gone > 0 AND head = 0", n)
    tx.run(
        "DELETE FROM sessions WHERE deleted = 1 AND updated_at <= ? AND NOT EXISTS "
        "(SELECT 1 FROM runs r WHERE r.tenant = sessions.tenant AND r.session = sessions.id)",
        tx.wall - 2 * max(older_than_ms, LINGER_MS),
    )
