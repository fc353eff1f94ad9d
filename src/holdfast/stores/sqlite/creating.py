"""create: admission, as one step."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from holdfast.domain.ids import SYNTHETIC_TENANT, RunKey
from holdfast.domain.runs import Move, Policy, Reason, State, Trigger, decide
from holdfast.ports.store import CONTROL_TOPIC, STOP_TOPIC, Created, Ended, Limits, NewRun, Status, Stopped
from holdfast.stores.sqlite import admission
from holdfast.stores.sqlite.ending import end_from_outside, insert_run, make_ready
from holdfast.stores.sqlite.rows import find, phase, record_of
from holdfast.stores.sqlite.telling import keep
from holdfast.stores.sqlite.tx import Tx


def create(tx: Tx, new: NewRun) -> Created:
    """Idempotency key, id, what it follows, policy, admission: in this order; nothing is changed before all passed."""
    before = _made_before(tx, new)
    if before is not None:
        return before
    if new.follows and _last(tx, new) != new.follows:
        return Created(Status.MOVED, None)
    active = _active(tx, new)
    behind = _behind(tx, new)
    policy = new.policy
    if policy is Policy.STEER and active is not None:
        if not put_into_inbox(tx, active, new.spec.input, new.idempotency_key, new.limits.queued_behind_max):
            return Created(Status.BUSY, record_of(tx, active))
        for key in _steer_keys(new):
            tx.run("INSERT INTO steers VALUES (?, ?, ?, ?)", new.key.tenant, key, new.body_hash, active["n"])
        return Created(Status.STEERED, record_of(tx, active))
    if policy is Policy.REJECT and active is not None:
        return Created(Status.BUSY, record_of(tx, active))
    if policy is Policy.ENQUEUE and active is not None and len(behind) >= new.limits.queued_behind_max:
        return Created(Status.BUSY, record_of(tx, active))
    replaces = policy is Policy.SUPERSEDE and (active is not None or bool(behind))
    if not replaces and (shed := admission.shed(tx, new)) is not None:
        return Created(Status.OVERLOADED, None, shed=shed)
    ends = _supersede(tx, active, behind, new.key.run) if policy is Policy.SUPERSEDE else []
    row = _insert(tx, new)
    keep(tx, ends)  # the new run follows them
    told = {end.key.run for end in ends}  # may hold earlier ends, which nobody has told either
    superseded = [r["id"] for r in (*behind, *([active] if active is not None else [])) if r["id"] in told]
    if _active(tx, new) is None:
        make_ready(tx, row, rank=row["rank"])
    made = find(tx, new.key)
    return Created(Status.OK, None if made is None else record_of(tx, made), superseded)


def put_into_inbox(tx: Tx, row: sqlite3.Row, text: str, idempotency_key: str, unread_max: int) -> bool:
    """Hand an input to a run that has not ended, once per idempotency key; whether the inbox had room for it."""
    if taken_as(tx, row, idempotency_key) is not None:
        return True
    if unread(tx, row) >= unread_max:
        return False
    tx.run(
        "INSERT INTO inbox (run, n, idempotency_key, input) "
        "VALUES (?1, (SELECT coalesce(max(n), 0) + 1 FROM inbox WHERE run = ?1), ?2, ?3)",
        row["n"],
        idempotency_key,
        text,
    )
    tx.wakes.add(CONTROL_TOPIC)
    return True


def unread(tx: Tx, row: sqlite3.Row) -> int:
    """How many inputs a run has not read."""
    found = tx.one("SELECT count(*) AS c FROM inbox WHERE run = ? AND read = 0", row["n"])
    return found["c"] if found else 0


def taken_as(tx: Tx, row: sqlite3.Row, idempotency_key: str) -> str | None:
    """The input that a run was given under this key before, read or not."""
    if not idempotency_key:
        return None
    found = tx.one("SELECT input FROM inbox WHERE run = ? AND idempotency_key = ?", row["n"], idempotency_key)
    return None if found is None else str(found["input"])


def _made_before(tx: Tx, new: NewRun) -> Created | None:
    row = None
    if new.idempotency_key:
        row = tx.one("SELECT * FROM runs WHERE tenant = ? AND idempotency_key = ?", new.key.tenant, new.idempotency_key)
    row = row if row is not None else find(tx, new.key)
    if row is None:
        return _steered_before(tx, new)
    same = row["body_hash"] == new.body_hash
    return Created(Status.EXISTS if same else Status.CONFLICT, record_of(tx, row))


def _steered_before(tx: Tx, new: NewRun) -> Created | None:
    for key in _steer_keys(new):
        known = tx.one("SELECT body_hash, run FROM steers WHERE tenant = ? AND key = ?", new.key.tenant, key)
        row = tx.one("SELECT * FROM runs WHERE n = ?", known["run"]) if known is not None else None
        if known is not None and row is not None:
            same = known["body_hash"] == new.body_hash
            return Created(Status.STEERED if same else Status.CONFLICT, record_of(tx, row))
    return None


def _steer_keys(new: NewRun) -> list[str]:
    return [*([f"key:{new.idempotency_key}"] if new.idempotency_key else []), f"id:{new.key.run}"]


def _last(tx: Tx, new: NewRun) -> str | None:
    """The session's newest run that is not gone."""
    last = "SELECT id FROM runs WHERE tenant = ? AND session = ? AND gone = 0 ORDER BY n DESC LIMIT 1"
    found = tx.one(last, new.key.tenant, new.session)
    return found["id"] if found is not None else None


def _active(tx: Tx, new: NewRun) -> sqlite3.Row | None:
    return tx.one("SELECT * FROM runs WHERE tenant = ? AND session = ? AND slot = 1", new.key.tenant, new.session)


def _behind(tx: Tx, new: NewRun) -> list[sqlite3.Row]:
    return tx.all(
        "SELECT * FROM runs WHERE tenant = ? AND session = ? AND state = 'queued' AND slot = 0 ORDER BY rank",
        new.key.tenant,
        new.session,
    )


def _supersede(tx: Tx, active: sqlite3.Row | None, behind: list[sqlite3.Row], by: str) -> list[Ended]:
    """End what is behind first, so that ending the active one promotes nobody; the ends that came with this step."""
    rows = [*behind, *([active] if active is not None else [])]
    return [end for row in rows for end in stop_row(tx, row, Reason.SUPERSEDED, by)]


def stop_row(tx: Tx, row: sqlite3.Row, reason: Reason, by: str) -> list[Ended]:
    """What a stop does to a live run: ends it now, or sets the flag if none is set; the ends to be told."""
    move = decide(phase(row), Trigger.STOP)
    if not isinstance(move, Move):
        return []
    if move.to.state is State.CANCELLED:
        return end_from_outside(tx, row, State.CANCELLED, reason, by)
    if row["stopping"] is None:
        tx.run(
            "UPDATE runs SET stopping = ?, stop_by = ?, stop_at = ?, stop_due = ? WHERE n = ?",
            reason,
            by,
            tx.wall,
            tx.now,
            row["n"],
        )
        tx.wakes.add(CONTROL_TOPIC)
        if row["tenant"] != SYNTHETIC_TENANT:  # its stop makes no supervisor impatient
            tx.wakes.add(STOP_TOPIC)
    return []


def request_stop(tx: Tx, key: RunKey, reason: Reason, by: str) -> Stopped:
    """The durable flag; see the port."""
    row = find(tx, key)
    if row is None:
        return Stopped(Status.UNKNOWN, None)
    if row["gone"]:
        return Stopped(Status.GONE, None)
    if State(row["state"]).terminal:
        return Stopped(Status.ENDED, record_of(tx, row))
    ends = stop_row(tx, row, reason, by)
    row = find(tx, key)
    return Stopped(Status.OK, None if row is None else record_of(tx, row), ends)


def listen(tx: Tx, keys: Sequence[RunKey], lease_ms: int) -> list[RunKey]:
    """Extend the listener's lease of live runs that have one; those."""
    renew = "UPDATE runs SET listener_due = ? WHERE tenant = ? AND id = ? AND listener_due IS NOT NULL"
    return [key for key in keys if tx.run(renew, tx.now + lease_ms, key.tenant, key.run)]


def _insert(tx: Tx, new: NewRun) -> sqlite3.Row:
    tx.run(
        "INSERT INTO sessions (tenant, id, generation, created_at, updated_at) VALUES (?1, ?2, 1, ?3, ?3) "
        "ON CONFLICT (tenant, id) DO UPDATE SET updated_at = ?3, deleted = 0, "
        "created_at = CASE WHEN deleted = 1 THEN ?3 ELSE created_at END",
        new.key.tenant,
        new.session,
        tx.wall,
    )
    session = tx.one("SELECT generation FROM sessions WHERE tenant = ? AND id = ?", new.key.tenant, new.session)
    limits = new.limits
    return insert_run(
        tx,
        new.key,
        new.session,
        session["generation"] if session else 1,
        new.spec,
        new.policy,
        _columns(limits),
        idempotency_key=new.idempotency_key or None,
        body_hash=new.body_hash,
        listener_ms=new.listener_ms,
    )


def _columns(limits: Limits) -> dict[str, int]:
    return {
        "deadline_ms": limits.deadline_ms,
        "queue_timeout_ms": limits.queue_timeout_ms,
        "session_wait_ms": limits.session_wait_ms,
        "attempts_max": limits.attempts_max,
    }
