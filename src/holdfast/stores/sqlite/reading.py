"""read, get, list: snapshots."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import msgspec

from holdfast.domain.ids import SYNTHETIC_TENANT, RunKey
from holdfast.domain.runs import State
from holdfast.ports.store import ROSTER_MADE, Glance, Page, Roster, RunRecord, Status, WorkerRecord
from holdfast.stores.composing import OVERDUE_MS, PAGE_BYTES
from holdfast.stores.sqlite.rows import find, position, record_of
from holdfast.stores.sqlite.tx import Tx


def read(tx: Tx, key: RunKey, after: int, limit: int, epoch: int | None) -> Page:
    """A page of the log with the state that goes with it, from one snapshot."""
    row = tx.one("SELECT n, state, head, gone FROM runs WHERE tenant = ? AND id = ?", key.tenant, key.run)
    if row is None:
        return Page(Status.UNKNOWN, [], [], after + 1, 0, 0, State.QUEUED)
    state, head = State(row["state"]), row["head"]
    if row["gone"]:
        return Page(Status.GONE, [], [], after + 1, head, _epoch_at(tx, row, head) or 0, state)
    if after > head or (epoch is not None and after > 0 and _epoch_at(tx, row, after) != epoch):
        return Page(Status.OK, [], [], after + 1, head, _epoch_at(tx, row, head) or 0, state, resync=True)
    found = _page(tx, row["n"], after, limit) if head > after else []
    whole = bool(found) and after + len(found) == head
    head_epoch = found[-1]["epoch"] if whole else _epoch_at(tx, row, head) or 0
    if not found and head > after:
        return Page(Status.GONE, [], [], after + 1, head, head_epoch, state)
    return Page(Status.OK, [r["data"] for r in found], [r["epoch"] for r in found], after + 1, head, head_epoch, state)


def _page(tx: Tx, n: int, after: int, limit: int) -> list[sqlite3.Row]:
    """Events after `after`: at least one if there is any, then as many as fit, because a slow reader holds a page."""
    found: list[sqlite3.Row] = []
    size = 0
    rows = tx.each("SELECT epoch, data FROM events WHERE run = ? AND seq > ? ORDER BY seq LIMIT ?", n, after, limit)
    with closing(rows):
        for row in rows:
            found.append(row)
            size += len(row["data"])
            if size >= PAGE_BYTES:
                break
    return found


def get(tx: Tx, key: RunKey) -> RunRecord | None:
    """The record of a run whose log is still there."""
    row = find(tx, key)
    return None if row is None or row["gone"] else record_of(tx, row)


def list_runs(tx: Tx, tenant: str, session: str | None, state: State | None, limit: int, after: str) -> list[RunRecord]:
    """Newest first."""
    clauses, values = ["tenant = ?", "gone = 0"], [tenant]
    if session is not None:
        clauses.append("session = ?")
        values.append(session)
    if state is not None:
        clauses.append("state = ?")
        values.append(state)
    if after:
        clauses.append("n < coalesce((SELECT n FROM runs WHERE tenant = ? AND id = ?), 0)")
        values += [tenant, after]
    rows = tx.all(
        f"SELECT * FROM runs WHERE {' AND '.join(clauses)} ORDER BY n DESC LIMIT ?",  # noqa: S608 - fixed clauses  # nosec B608
        *values,
        limit,
    )
    return [record_of(tx, row) for row in rows]


def roster(tx: Tx, tenant: str, since: int, known: Sequence[str]) -> Roster:
    """How runs stand; `+tenant`, because what is new is found by its number however many runs others have."""
    live = tx.all("SELECT * FROM runs WHERE state IN ('queued', 'running', 'waiting') AND tenant = ?", tenant)
    newer = "SELECT * FROM runs WHERE n > ? AND +tenant = ? AND gone = 0 ORDER BY n LIMIT ?"
    new = tx.all(newer, since, tenant, ROSTER_MADE)
    if len(new) == ROSTER_MADE:
        upto = new[-1]["n"]
    else:
        newest = tx.one("SELECT max(n) AS n FROM runs")
        upto = max(since, newest["n"] or 0) if newest else since
    found = {row["id"]: row for row in (*live, *new)}
    for run in known:
        if run not in found:
            row = find(tx, RunKey(tenant, run))
            if row is not None and not row["gone"]:
                found[run] = row
    return Roster([_glance(tx, row) for row in found.values()], upto)


def _glance(tx: Tx, row: sqlite3.Row) -> Glance:
    queued = f"{position(tx, row)} {row['head']}" if row["state"] == State.QUEUED else ""
    mark = f"{row['state']} {row['stopping'] or ''} {row['epoch']} {row['attempt']} {queued}"
    return Glance(row["id"], row["n"], mark)


def workers(tx: Tx) -> list[WorkerRecord]:
    """Who reported in the last minute."""
    rows = tx.all("SELECT * FROM workers WHERE seen_due > ? ORDER BY worker", tx.now)
    return [WorkerRecord(r["worker"], r["seen_at"], msgspec.json.decode(r["facts"])) for r in rows]


def facts(tx: Tx) -> dict[str, Any]:
    """What is in the database."""
    by_state = "SELECT state, count(*) AS c FROM runs WHERE tenant <> ? GROUP BY state"
    counts = {r["state"]: r["c"] for r in tx.all(by_state, SYNTHETIC_TENANT)}
    ready = tx.one(  # since when it is ready this time: ready_at is of the first
        "SELECT count(*) AS c, min(wait_due - queue_timeout_ms) AS oldest FROM runs WHERE state = 'queued' AND slot = 1"
    )
    overdue = tx.one(
        "SELECT (SELECT count(*) FROM runs WHERE deadline_due <= ?1) + "
        "(SELECT count(*) FROM runs WHERE stop_due <= ?1) AS c",
        tx.now - OVERDUE_MS,
    )
    pages = tx.one("SELECT page_count * page_size AS bytes FROM pragma_page_count(), pragma_page_size()")
    return {
        "runs": counts,
        "ready": ready["c"] if ready else 0,
        "ready_age_ms": max(0, tx.now - ready["oldest"]) if ready and ready["oldest"] is not None else 0,
        "overdue": overdue["c"] if overdue else 0,
        "database_bytes": pages["bytes"] if pages else 0,
    }


def _epoch_at(tx: Tx, row: sqlite3.Row, seq: int) -> int | None:
    found = tx.one("SELECT epoch FROM events WHERE run = ? AND seq = ?", row["n"], seq)
    return None if found is None else int(found["epoch"])
