"""append, finish, park, resume, and the inbox: what the holder of a run writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from holdfast.domain.events import EventType
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Move, Refusal, State, Trigger, decide
from holdfast.ports.store import Appended, Ending, Fence, InputItem, Status
from holdfast.stores import composing
from holdfast.stores.sqlite import log
from holdfast.stores.sqlite.claiming import holds
from holdfast.stores.sqlite.creating import put_into_inbox, taken_as, unread
from holdfast.stores.sqlite.ending import changed, close, derived_entry, front_rank, leave_running, make_ready
from holdfast.stores.sqlite.rows import find, phase, spec_of
from holdfast.stores.sqlite.tx import Tx

# The whole row, as `find` has it, would be a third of what an append costs this thread.
_APPENDED_TO: Final = (
    "SELECT n, tenant, id, state, stopping, epoch, claim, begun, head FROM runs WHERE tenant = ? AND id = ?"
)


def append(
    tx: Tx,
    key: RunKey,
    fence: Fence,
    base: int,
    events: Sequence[bytes],
    checkpoint: bytes | None,
    consumed: int,
) -> Appended:
    """All or none; see the port."""
    row = tx.one(_APPENDED_TO, key.tenant, key.run)
    refusal = _refused(tx, row, fence, base, events, Trigger.APPEND)
    if refusal is not None or row is None:
        return refusal or Appended(Status.UNKNOWN, 0)
    head = log.write(tx, row, events, fence.epoch)
    _begin(tx, row, events)
    if checkpoint is not None:
        _save_checkpoint(tx, row["n"], head, checkpoint)
    if consumed:
        tx.run("UPDATE inbox SET read = 1 WHERE run = ? AND n <= ?", row["n"], consumed)
    return Appended(Status.OK, head)


def finish(tx: Tx, key: RunKey, fence: Fence, base: int, events: Sequence[bytes], ending: Ending) -> Appended:
    """The terminal write of the holder; see the port for the order of checks."""
    row = find(tx, key)
    if row is None:
        return Appended(Status.UNKNOWN, 0)
    if State(row["state"]).terminal:
        mine = row["epoch"] == fence.epoch and row["claim"] == fence.claim
        return Appended(Status.DUP if mine else Status.FENCED, row["head"])
    refusal = _refused(tx, row, fence, base, events, composing.FINISHES[ending.state], finishing=True)
    if refusal is not None:
        return refusal
    if ending.state is State.COMPLETED and not ending.leave_inbox and unread(tx, row):
        return Appended(Status.PENDING_INPUT, row["head"])
    head = log.write(tx, row, events, fence.epoch)
    _begin(tx, row, events)
    entry = ending.history
    if entry is None:
        entry = derived_entry(tx, row, ending.state, log.digest(tx, row["n"]))
    close(tx, row, ending, entry)
    return Appended(Status.OK, head)


def park(
    tx: Tx, key: RunKey, fence: Fence, base: int, events: Sequence[bytes], checkpoint: bytes, approval_ms: int
) -> Appended:
    """To waiting: the lease is given back, the slot kept, the deadline stopped."""
    row = find(tx, key)
    if (
        row is not None
        and row["state"] == State.WAITING
        and _same_claim(row, fence)
        and log.holds(tx, row, base, events)
    ):
        return Appended(Status.DUP, row["head"])
    refusal = _refused(tx, row, fence, base, events, Trigger.PARK)
    if refusal is not None or row is None:
        return refusal or Appended(Status.UNKNOWN, 0)
    head = log.write(tx, row, events, fence.epoch)
    _begin(tx, row, events)
    _save_checkpoint(tx, row["n"], head, checkpoint)
    tx.run(
        "UPDATE runs SET state = 'waiting', lease_due = NULL, wait_due = ?, deadline_left = max(0, deadline_due - ?), "
        "deadline_due = NULL WHERE n = ?",
        tx.now + approval_ms,
        tx.now,
        row["n"],
    )
    leave_running(tx, row)
    changed(tx, row)
    return Appended(Status.OK, head)


def decide_some(tx: Tx, key: RunKey, fields: Mapping[str, Any], base: int) -> Appended:
    """A waiting run hears some of its decisions, and waits on."""
    row = find(tx, key)
    if row is None:
        return Appended(Status.UNKNOWN, 0)
    move = decide(phase(row), Trigger.RESUME)
    if not isinstance(move, Move):
        return Appended(_answer(move), row["head"])
    if row["head"] != base:
        return Appended(Status.GAP, row["head"])
    head = log.write_event(tx, row, EventType.RUN_DECIDED, dict(fields), row["epoch"])
    changed(tx, row)
    return Appended(Status.OK, head)


def resume(tx: Tx, key: RunKey, decisions: Sequence[dict[str, Any]], base: int | None) -> Appended:
    """From waiting back into the ready queue, epoch + 1, the deadline with what it had left."""
    row = find(tx, key)
    if row is None:
        return Appended(Status.UNKNOWN, 0)
    move = decide(phase(row), Trigger.RESUME)
    if not isinstance(move, Move):
        return Appended(_answer(move), row["head"])
    if base not in (None, row["head"]):
        return Appended(Status.GAP, row["head"])
    head = log.write_event(tx, row, EventType.RUN_RESUMED, {"decisions": list(decisions)}, row["epoch"] + 1)
    tx.run(  # asking a human is no lost attempt
        "UPDATE runs SET epoch = epoch + 1, claim = '', worker = '', attempt = attempt - begun WHERE n = ?", row["n"]
    )
    tx.run(
        "INSERT OR REPLACE INTO decisions (run, decisions) VALUES (?, ?)",
        row["n"],
        msgspec.json.encode(list(decisions)),
    )
    make_ready(tx, row, rank=front_rank(tx, row))
    tx.run("UPDATE runs SET deadline_left = NULL WHERE n = ?", row["n"])
    return Appended(Status.OK, head)


def steer(tx: Tx, key: RunKey, text: str, idempotency_key: str, unread_max: int) -> Status:
    """Into the inbox of a run that has not ended."""
    row = find(tx, key)
    if row is None:
        return Status.UNKNOWN
    taken = taken_as(tx, row, idempotency_key)
    if taken is not None:
        return Status.OK if taken == text else Status.CONFLICT
    if State(row["state"]).terminal:
        return Status.GONE if row["gone"] else Status.ENDED
    return Status.OK if put_into_inbox(tx, row, text, idempotency_key, unread_max) else Status.BUSY


def inbox(tx: Tx, key: RunKey) -> list[InputItem]:
    """Unread steered inputs."""
    row = find(tx, key)
    if row is None:
        return []
    found = tx.all("SELECT n, input FROM inbox WHERE run = ? AND read = 0 ORDER BY n", row["n"])
    return [InputItem(r["n"], r["input"]) for r in found]


def edit_input(tx: Tx, key: RunKey, text: str) -> Status:
    """Replace the input of a run that never began. The log says so; what it said before stays as readers saw it."""
    row = find(tx, key)
    if row is None:
        return Status.UNKNOWN
    if row["state"] != State.QUEUED or row["started_at"] is not None:
        return Status.ENDED
    spec = msgspec.structs.replace(spec_of(tx, row["n"]), input=text)
    tx.run("UPDATE specs SET spec = ? WHERE run = ?", msgspec.json.encode(spec), row["n"])
    log.write_event(tx, row, EventType.RUN_EDITED, {"input": text}, row["epoch"])
    changed(tx, row)
    return Status.OK


def _refused(
    tx: Tx,
    row: sqlite3.Row | None,
    fence: Fence,
    base: int,
    events: Sequence[bytes],
    trigger: Trigger,
    *,
    finishing: bool = False,
) -> Appended | None:
    """Why the holder's write is not carried out, or None: fence, then the table, then the offset."""
    if row is None:
        return Appended(Status.UNKNOWN, 0)
    head: int = row["head"]
    if not holds(row, fence):
        return Appended(Status.FENCED, head)
    move = decide(phase(row), trigger)
    if not isinstance(move, Move):
        return Appended(_answer(move), head)
    if head != base:
        repeated = not finishing and log.holds(tx, row, base, events)
        return Appended(Status.DUP if repeated else Status.GAP, head)
    return None


def _answer(refusal: Refusal) -> Status:
    match refusal:
        case Refusal.FENCED:
            return Status.FENCED
        case Refusal.STOP:
            return Status.STOP
        case Refusal.ENDED | Refusal.NOT_DUE:
            return Status.ENDED


def _same_claim(row: sqlite3.Row, fence: Fence) -> bool:
    same: bool = row["epoch"] == fence.epoch and row["claim"] == fence.claim
    return same


def _begin(tx: Tx, row: sqlite3.Row, events: Sequence[bytes]) -> None:
    """A claim that wrote run.started has begun: from here it counts as an attempt."""
    if not row["begun"] and composing.begins(events):
        tx.run(
            "UPDATE runs SET begun = 1, attempt = attempt + 1, started_at = coalesce(started_at, ?) WHERE n = ?",
            tx.wall,
            row["n"],
        )
        changed(tx, row)


def _save_checkpoint(tx: Tx, n: int, seq: int, data: bytes) -> None:
    tx.run("INSERT OR REPLACE INTO checkpoints (run, seq, data) VALUES (?, ?, ?)", n, seq, data)
