"""Ending a run, in one step whoever ends it: terminal event, slot, queue, history, inbox."""

from __future__ import annotations

import sqlite3

import msgspec

from holdfast.domain.digest import Digest
from holdfast.domain.events import EventType
from holdfast.domain.ids import RunKey, new_run_id
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import READY_TOPIC, Ended, Ending, RunSpec, list_topic, run_topic
from holdfast.stores import composing
from holdfast.stores.sqlite import log
from holdfast.stores.sqlite.rows import find, key_of, save_result, spec_of
from holdfast.stores.sqlite.telling import hand_over
from holdfast.stores.sqlite.tx import Tx


def end_from_outside(
    tx: Tx,
    row: sqlite3.Row,
    state: State,
    reason: Reason,
    by: str,
    fold: Digest | None = None,
    *,
    killed: bool = False,
    left: bool = False,
    cut_off: bool = False,
) -> list[Ended]:
    """End a run that no worker writes any more: the store composes the terminal event from the log.

    Args:
        tx: The transaction.
        row: The run, as it is now.
        state: failed or cancelled.
        reason: Why.
        by: Who asked, for run.cancelled.
        fold: The log's digest, if the caller has it already.
        killed: Whether the process that worked on it is known to be dead.
        left: Whether its worker gave it back by itself.
        cut_off: Whether its worker may still work on it.

    Returns:
        The ends that the caller has to tell.
    """
    fold = log.digest(tx, row["n"]) if fold is None else fold
    last, ending = composing.end_from_outside(
        fold, state, reason, by, asked_at=row["stop_at"] or tx.wall, wall=tx.wall, killed=killed, cut_off=cut_off
    )
    log.write_events(tx, row, last, row["epoch"] + 1)
    entry = derived_entry(tx, row, state, fold)
    tx.run("UPDATE runs SET epoch = epoch + 1, claim = '', stop_by = ? WHERE n = ?", by, row["n"])
    close(tx, row, ending, entry)
    return hand_over(tx, row, cut_off=row["state"] == State.RUNNING and not left)


def derived_entry(tx: Tx, row: sqlite3.Row, state: State, fold: Digest) -> HistoryEntry:
    """What the run leaves in its session, as a pure function of input, last checkpoint and log."""
    spec = spec_of(tx, row["n"])
    found = tx.one("SELECT seq, data FROM checkpoints WHERE run = ?", row["n"])
    if found is None:
        return composing.derived_entry(row["id"], spec, state, fold, None, None)
    tail = log.digest(tx, row["n"], found["seq"]) if spec.kind else None
    return composing.derived_entry(row["id"], spec, state, fold, found["data"], tail)


def close(tx: Tx, row: sqlite3.Row, ending: Ending, entry: HistoryEntry) -> None:
    """The terminal step, after the terminal event was written: once, because the row is live before it."""
    n = row["n"]
    tx.run(
        "UPDATE runs SET state = ?, reason = ?, slot = 0, lease_due = NULL, wait_due = NULL, deadline_due = NULL, "
        "stop_due = NULL, listener_due = NULL, ended_at = ?, rehearsal = max(rehearsal, ?) WHERE n = ?",
        ending.state,
        ending.reason,
        tx.wall,
        int(ending.rehearsal),
        n,
    )
    save_result(tx, n, ending)
    session = tx.one("SELECT generation FROM sessions WHERE tenant = ? AND id = ?", row["tenant"], row["session"])
    if session is not None and session["generation"] == row["generation"]:
        _remember(tx, row, entry)
        _queue_unread(tx, row)
    tx.run("DELETE FROM checkpoints WHERE run = ?", n)
    tx.run("DELETE FROM decisions WHERE run = ?", n)
    tx.run("UPDATE inbox SET read = 1 WHERE run = ?", n)
    if row["slot"]:
        promote(tx, row["tenant"], row["session"])
    leave_running(tx, row)
    changed(tx, row)


def changed(tx: Tx, row: sqlite3.Row) -> None:
    """Wake who looks at this run or at a list with it."""
    tx.wakes.add(run_topic(key_of(row)))
    tx.wakes.add(list_topic(row["tenant"]))


def promote(tx: Tx, tenant: str, session: str) -> None:
    """Give the free slot to the first run behind it that is still queued."""
    row = tx.one(
        "SELECT * FROM runs WHERE tenant = ? AND session = ? AND state = 'queued' AND slot = 0 ORDER BY rank LIMIT 1",
        tenant,
        session,
    )
    if row is not None:
        make_ready(tx, row, rank=row["rank"])


def make_ready(tx: Tx, row: sqlite3.Row, *, rank: int) -> None:
    """Put a run at the head of its session into the ready queue; its queue timeout runs anew from here."""
    tx.run(
        "UPDATE runs SET state = 'queued', slot = 1, rank = ?, wait_due = ?, deadline_due = coalesce(deadline_due, ?), "
        "lease_due = NULL, begun = 0, ready_at = coalesce(ready_at, ?) WHERE n = ?",
        rank,
        tx.now + row["queue_timeout_ms"],
        tx.now + (row["deadline_ms"] if row["deadline_left"] is None else row["deadline_left"]),
        tx.wall,
        row["n"],
    )
    take_turn(tx, row["tenant"])
    tx.wakes.add(READY_TOPIC)
    changed(tx, row)


def leave_running(tx: Tx, row: sqlite3.Row) -> None:
    """A worker lets go of a run, whose row is as it was before: who waited at a cap on running runs goes on."""
    if row["state"] != State.RUNNING:
        return
    ready = "SELECT 1 FROM runs WHERE tenant = ? AND state = 'queued' AND slot = 1 LIMIT 1"
    if tx.one(ready, row["tenant"]) is not None:
        take_turn(tx, row["tenant"])
    if tx.one("SELECT 1 FROM turns LIMIT 1") is not None:
        tx.wakes.add(READY_TOPIC)


def take_turn(tx: Tx, tenant: str) -> None:
    """Queue a tenant behind the others that have ready runs, unless it is queued already."""
    tx.run(
        "INSERT OR IGNORE INTO turns (tenant, turn) VALUES (?, (SELECT coalesce(max(turn), 0) + 1 FROM turns))",
        tenant,
    )


def front_rank(tx: Tx, row: sqlite3.Row) -> int:
    """A rank before every ready run of the tenant."""
    first = tx.one("SELECT min(rank) AS r FROM runs WHERE tenant = ? AND state = 'queued' AND slot = 1", row["tenant"])
    own: int = row["rank"]
    return own if first is None or first["r"] is None else min(own, first["r"] - 1)


def _remember(tx: Tx, row: sqlite3.Row, entry: HistoryEntry) -> None:
    tx.run(
        "INSERT OR IGNORE INTO history (tenant, session, run, entry) VALUES (?, ?, ?, ?)",
        row["tenant"],
        row["session"],
        row["n"],
        msgspec.json.encode(entry),
    )


def _queue_unread(tx: Tx, row: sqlite3.Row) -> None:
    """Steered inputs that nobody read become one run, first behind the one that ended."""
    unread = tx.all("SELECT input FROM inbox WHERE run = ? AND read = 0 ORDER BY n", row["n"])
    if not unread:
        return
    spec = spec_of(tx, row["n"])
    follow = composing.follow_up(spec, [r["input"] for r in unread])
    first = tx.one(
        "SELECT min(rank) AS r FROM runs WHERE tenant = ? AND session = ? AND state = 'queued' AND slot = 0",
        row["tenant"],
        row["session"],
    )
    rank = None if first is None or first["r"] is None else first["r"] - 1
    key = RunKey(row["tenant"], new_run_id())
    limits = {name: row[name] for name in ("deadline_ms", "queue_timeout_ms", "session_wait_ms", "attempts_max")}
    insert_run(tx, key, row["session"], row["generation"], follow, Policy.STEER, limits, rank=rank)


def insert_run(
    tx: Tx,
    key: RunKey,
    session: str,
    generation: int,
    spec: RunSpec,
    policy: Policy,
    limits: dict[str, int],
    *,
    rank: int | None = None,
    idempotency_key: str | None = None,
    body_hash: str = "",
    listener_ms: int = 0,
) -> sqlite3.Row:
    """A new run behind its session's slot, with its run.created; its row."""
    n = tx.insert(
        "INSERT INTO runs (tenant, id, session, generation, policy, idempotency_key, body_hash, deadline_ms, "
        "queue_timeout_ms, session_wait_ms, attempts_max, state, slot, rank, head, log_bytes, epoch, wait_due, "
        "created_at, rehearsal, listener_due) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'queued', 0, 0, 0, 0, 0, ?, ?, ?, ?)",
        key.tenant,
        key.run,
        session,
        generation,
        policy,
        idempotency_key,
        body_hash,
        limits["deadline_ms"],
        limits["queue_timeout_ms"],
        limits["session_wait_ms"],
        limits["attempts_max"],
        tx.now + limits["session_wait_ms"],
        tx.wall,
        int(spec.rehearsal),
        tx.now + listener_ms if listener_ms else None,
    )
    tx.run("UPDATE runs SET rank = ? WHERE n = ?", n if rank is None else rank, n)
    tx.run("INSERT INTO specs (run, spec) VALUES (?, ?)", n, msgspec.json.encode(spec))
    created = composing.created_fields(session, spec, policy)
    row = find(tx, key)
    assert row is not None  # noqa: S101 - inserted above, in this transaction
    log.write_event(tx, row, EventType.RUN_CREATED, created, 0)
    changed(tx, row)
    row = find(tx, key)
    assert row is not None  # noqa: S101 - as above
    return row
