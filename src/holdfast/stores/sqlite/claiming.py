"""claim, renew, release, disown: who holds a run, and until when."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from holdfast.domain.ids import RunKey, new_claim_token
from holdfast.domain.runs import Move, Reason, State, Trigger, decide
from holdfast.ports.store import Appended, Claim, Fence, Held, Renewal, RunningCaps, Status
from holdfast.stores.sqlite.admission import running
from holdfast.stores.sqlite.ending import changed, end_from_outside, front_rank, make_ready
from holdfast.stores.sqlite.rows import find, key_of, phase, spec_of
from holdfast.stores.sqlite.telling import take
from holdfast.stores.sqlite.tx import Tx


def claim(tx: Tx, worker: str, n: int, lease_ms: int, caps: RunningCaps) -> list[Claim]:
    """Round robin between tenants with ready runs; within one, in the order of the queue."""
    claims: list[Claim] = []
    if caps.deployment:
        n = min(n, caps.deployment - running(tx))
    while len(claims) < n:
        turn = tx.one("SELECT tenant FROM turns ORDER BY turn LIMIT 1")
        if turn is None:
            break
        tenant = turn["tenant"]
        if caps.tenant and running(tx, tenant) >= caps.tenant:
            tx.run("DELETE FROM turns WHERE tenant = ?", tenant)  # the end of one of its runs brings it back
            continue
        row = tx.one(
            "SELECT * FROM runs WHERE tenant = ? AND state = 'queued' AND slot = 1 ORDER BY rank LIMIT 1",
            tenant,
        )
        if row is None:
            tx.run("DELETE FROM turns WHERE tenant = ?", tenant)
            continue
        tx.run("UPDATE turns SET turn = (SELECT max(turn) + 1 FROM turns) WHERE tenant = ?", tenant)
        claims.append(_hand_out(tx, row, worker, lease_ms))
    return claims


def _hand_out(tx: Tx, row: sqlite3.Row, worker: str, lease_ms: int) -> Claim:
    fence = Fence(row["epoch"] + 1, new_claim_token())
    tx.run(
        "UPDATE runs SET state = 'running', epoch = ?, claim = ?, worker = ?, begun = 0, lease_due = ?, "
        "wait_due = NULL WHERE n = ?",
        fence.epoch,
        fence.claim,
        worker,
        tx.now + lease_ms,
        row["n"],
    )
    checkpoint = tx.one("SELECT seq, data FROM checkpoints WHERE run = ?", row["n"])
    decisions = tx.one("SELECT decisions FROM decisions WHERE run = ?", row["n"])
    changed(tx, row)
    return Claim(
        key=key_of(row),
        session=row["session"],
        fence=fence,
        base=row["head"],
        attempt=row["attempt"] + 1,
        attempts_max=row["attempts_max"],
        spec=spec_of(tx, row["n"]),
        deadline_left_ms=row["deadline_due"] - tx.now,
        checkpoint=checkpoint["data"] if checkpoint else None,
        checkpoint_seq=checkpoint["seq"] if checkpoint else 0,
        created_at=row["created_at"],
        ready_at=row["ready_at"] or row["created_at"],
        decisions=msgspec.json.decode(decisions["decisions"]) if decisions else [],
        before=take(tx, row["tenant"], row["session"]),
    )


def renew(tx: Tx, held: Sequence[Held], lease_ms: int) -> list[Renewal]:
    """Extend the leases that still hold; a flagged run's too, because its worker must be able to end it."""
    return [_renew(tx, each, lease_ms) for each in held]


def _renew(tx: Tx, held: Held, lease_ms: int) -> Renewal:
    row = find(tx, held.key)
    if row is None or not holds(row, held.fence):
        return Renewal(held, lost=True)
    tx.run("UPDATE runs SET lease_due = ? WHERE n = ?", tx.now + lease_ms, row["n"])
    unread = tx.one("SELECT 1 FROM inbox WHERE run = ? AND read = 0 LIMIT 1", row["n"])
    return Renewal(
        held,
        lost=False,
        stop=Reason(row["stopping"]) if row["stopping"] else None,
        stop_by=row["stop_by"],
        stop_at=row["stop_at"] or 0,
        inbox=unread is not None,
    )


def holds(row: sqlite3.Row, fence: Fence) -> bool:
    """Whether `fence` is the present claim of a running run."""
    same: bool = row["epoch"] == fence.epoch and row["claim"] == fence.claim
    return same and row["state"] == State.RUNNING


def release(tx: Tx, key: RunKey, fence: Fence) -> Appended:
    """Back to the front of the queue, epoch + 1, no attempt counted; a flagged run ends cancelled."""
    row = find(tx, key)
    if row is None:
        return Appended(Status.UNKNOWN, 0)
    move = decide(phase(row), Trigger.RELEASE)
    if not holds(row, fence) or not isinstance(move, Move):
        return Appended(Status.FENCED, row["head"])
    if move.to.state is State.CANCELLED:
        ends = end_from_outside(tx, row, State.CANCELLED, Reason(row["stopping"]), row["stop_by"], left=True)
        return Appended(Status.OK, row["head"] + 1, ends)
    requeue(tx, row, counts=False)
    return Appended(Status.OK, row["head"])


def requeue(tx: Tx, row: sqlite3.Row, *, counts: bool) -> None:
    """Take a run from its holder and put it at the front of the ready queue; its queue timeout runs anew."""
    tx.run(
        "UPDATE runs SET epoch = epoch + 1, claim = '', worker = '', attempt = attempt - ? WHERE n = ?",
        0 if counts else row["begun"],
        row["n"],
    )
    make_ready(tx, row, rank=front_rank(tx, row))


def disown(tx: Tx, workers: Sequence[str] | None) -> int:
    """Expire leases of workers proven dead."""
    if workers is None:
        return tx.run("UPDATE runs SET lease_due = ? WHERE state = 'running'", tx.now)
    return sum(
        tx.run("UPDATE runs SET lease_due = ? WHERE state = 'running' AND worker = ?", tx.now, w) for w in workers
    )


def report(tx: Tx, worker: str, facts: dict[str, Any]) -> None:
    """Keep what a worker says of itself, for a minute."""
    tx.run(
        "INSERT OR REPLACE INTO workers (worker, seen_due, seen_at, facts) VALUES (?, ?, ?, ?)",
        worker,
        tx.now + 60_000,
        tx.wall,
        msgspec.json.encode(facts, enc_hook=str),
    )
    tx.run("DELETE FROM workers WHERE seen_due <= ?", tx.now)
