"""reap: what is due is requeued or ended, whoever held it.

Two steps, so that a long log is not folded inside the write transaction: `due` reads, the fold happens outside,
and `settle` acts only if the run is still as it was read.
"""

from __future__ import annotations

import sqlite3

import msgspec

from holdfast.domain.digest import Digest
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Move, Reason, State, Trigger, decide
from holdfast.ports.store import Reaped
from holdfast.stores.composing import TIMERS
from holdfast.stores.sqlite import log
from holdfast.stores.sqlite.claiming import requeue
from holdfast.stores.sqlite.creating import stop_row
from holdfast.stores.sqlite.ending import end_from_outside
from holdfast.stores.sqlite.rows import find, key_of, phase
from holdfast.stores.sqlite.telling import take_forgotten
from holdfast.stores.sqlite.tx import Tx


class Due(msgspec.Struct, frozen=True):
    """A run with a timer that has run out, as it was read."""

    key: RunKey
    n: int
    epoch: int
    head: int
    trigger: Trigger
    column: str
    fold: Digest | None = None


def due(tx: Tx, limit: int, grace_ms: int) -> list[Due]:
    """What reap has to do now; a run once, by its first timer in the order of the table above."""
    found: dict[int, Due] = {}
    for trigger, timer, graced in TIMERS:
        column = f"{timer}_due"
        rows = tx.all(
            f"SELECT * FROM runs WHERE {column} <= ?1 AND ({column} <= ?2 OR state <> 'running') "  # noqa: S608 - of TIMERS  # nosec B608
            f"ORDER BY {column} LIMIT ?3",
            tx.now,
            tx.now - (grace_ms if graced else 0),
            limit,
        )
        for row in rows:
            found.setdefault(row["n"], Due(key_of(row), row["n"], row["epoch"], row["head"], trigger, column))
    return [msgspec.structs.replace(each, fold=log.digest(tx, each.n)) for each in list(found.values())[:limit]]


def settle(tx: Tx, each: Due, grace_ms: int) -> Reaped | None:
    """Requeue or end one run, if it is still due, in the same epoch and with the same head."""
    row = find(tx, each.key)
    if row is None or row["epoch"] != each.epoch or row["head"] != each.head or row[each.column] is None:
        return None
    running = row["state"] == State.RUNNING
    given = grace_ms if running and each.column in ("stop_due", "deadline_due") else 0
    if row[each.column] + given > tx.now:
        return None
    if each.column == "listener_due":
        return _nobody_listens(tx, row)
    trigger = each.trigger
    if trigger is Trigger.LEASE_LOST and row["begun"] and row["attempt"] >= row["attempts_max"]:
        trigger = Trigger.ATTEMPTS_SPENT
    move = decide(phase(row), trigger)
    if not isinstance(move, Move):
        return None
    if move.to.state is State.QUEUED:
        requeue(tx, row, counts=True)
        return Reaped(each.key, row["session"], "requeued", None)
    reason = _reason(row, move.to.state, trigger, each.column)
    ends = end_from_outside(tx, row, move.to.state, reason, row["stop_by"], each.fold, cut_off=running)
    return Reaped(each.key, row["session"], move.to.state, reason, ends)


def forgotten(tx: Tx, limit: int) -> list[Reaped]:
    """Ends that are still to be told, and whose session has nobody to do it."""
    return [Reaped(end.key, end.session, end.state, end.reason, [end]) for end in take_forgotten(tx, limit)]


def _nobody_listens(tx: Tx, row: sqlite3.Row) -> Reaped:
    """Whoever served the request that made this run is gone: tell the run to stop, as if its client had left."""
    reason = Reason.CLIENT_DISCONNECT
    tx.run("UPDATE runs SET listener_due = NULL WHERE n = ?", row["n"])
    ends = stop_row(tx, row, reason, "reaper")
    running = row["state"] == State.RUNNING
    return Reaped(key_of(row), row["session"], "stopping" if running else State.CANCELLED, reason, ends)


def bury(tx: Tx, worker: str, blamed: RunKey | None) -> list[Reaped]:
    """What a dead worker held, at once; see the port."""
    rows = tx.all("SELECT * FROM runs WHERE state = 'running' AND worker = ? ORDER BY rank", worker)
    return [_take_from_the_dead(tx, row, blamed) for row in rows]


def _take_from_the_dead(tx: Tx, row: sqlite3.Row, blamed: RunKey | None) -> Reaped:
    key = key_of(row)
    spent = row["begun"] and row["attempt"] >= row["attempts_max"]
    trigger = Trigger.ATTEMPTS_SPENT if key == blamed or (spent and blamed is None) else Trigger.LEASE_LOST
    move = decide(phase(row), trigger)
    assert isinstance(move, Move)  # noqa: S101 - both triggers move every running run
    state = move.to.state
    if state is State.QUEUED:
        requeue(tx, row, counts=blamed is None)
        return Reaped(key, row["session"], "requeued", None)
    reason = Reason.AGENT_ERROR if key == blamed else Reason.WORKER_LOST
    if state is State.CANCELLED:
        reason = Reason(row["stopping"])
    ends = end_from_outside(tx, row, state, reason, row["stop_by"], killed=True)
    return Reaped(key, row["session"], state, reason, ends)


def next_due(tx: Tx) -> int | None:
    """Milliseconds until the first timer runs out, grace not counted."""
    row = tx.one(
        "SELECT min(coalesce((SELECT min(lease_due) FROM runs WHERE lease_due IS NOT NULL), 1e18), "
        "coalesce((SELECT min(wait_due) FROM runs WHERE wait_due IS NOT NULL), 1e18), "
        "coalesce((SELECT min(deadline_due) FROM runs WHERE deadline_due IS NOT NULL), 1e18), "
        "coalesce((SELECT min(listener_due) FROM runs WHERE listener_due IS NOT NULL), 1e18), "
        "coalesce((SELECT min(stop_due) FROM runs WHERE stop_due IS NOT NULL), 1e18)) AS due"
    )
    return None if row is None or row["due"] >= 1e18 else max(0, int(row["due"]) - tx.now)


def _reason(row: sqlite3.Row, state: State, trigger: Trigger, column: str) -> Reason:
    if state is State.CANCELLED:
        return Reason(row["stopping"])
    if trigger is Trigger.ATTEMPTS_SPENT:
        return Reason.WORKER_LOST
    if column == "wait_due" and row["state"] == State.QUEUED:
        return Reason.QUEUE_TIMEOUT
    return Reason.DEADLINE
