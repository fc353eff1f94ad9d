"""Between rows and values."""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Phase, Policy, Reason, State, phase_of
from holdfast.ports.store import Ending, RunRecord, RunSpec
from holdfast.stores.composing import Result, result_of
from holdfast.stores.sqlite.tx import Tx

LIVE: Final = "state IN ('queued', 'running', 'waiting')"

_spec = msgspec.json.Decoder(RunSpec)


_result = msgspec.json.Decoder(Result)


def find(tx: Tx, key: RunKey) -> sqlite3.Row | None:
    """The run's row."""
    return tx.one("SELECT * FROM runs WHERE tenant = ? AND id = ?", key.tenant, key.run)


def key_of(row: sqlite3.Row) -> RunKey:
    """The run's key."""
    return RunKey(row["tenant"], row["id"])


def phase(row: sqlite3.Row) -> Phase:
    """The lifecycle table's row for this run."""
    return phase_of(State(row["state"]), stopping=row["stopping"] is not None)


def spec_of(tx: Tx, n: int) -> RunSpec:
    """What the run was asked."""
    row = tx.one("SELECT spec FROM specs WHERE run = ?", n)
    return _spec.decode(row["spec"]) if row else RunSpec(input="", agent="")


def save_result(tx: Tx, n: int, ending: Ending) -> None:
    """Keep what the record shows of an end."""
    tx.run("INSERT OR REPLACE INTO results (run, result) VALUES (?, ?)", n, msgspec.json.encode(result_of(ending)))


def record_of(tx: Tx, row: sqlite3.Row) -> RunRecord:
    """A snapshot of the run."""
    found = tx.one("SELECT result FROM results WHERE run = ?", row["n"])
    result = _result.decode(found["result"]) if found else Result()
    stopping = row["stopping"] if row["state"] == State.RUNNING else None
    return RunRecord(
        key=key_of(row),
        session=row["session"],
        spec=spec_of(tx, row["n"]),
        policy=Policy(row["policy"]),
        state=State(row["state"]),
        reason=Reason(row["reason"]) if row["reason"] else None,
        stopping=Reason(stopping) if stopping else None,
        seq=row["head"],
        epoch=row["epoch"],
        attempt=row["attempt"],
        worker=row["worker"],
        created_at=row["created_at"],
        ready_at=row["ready_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        position=position(tx, row),
        due_in_ms=_left(tx, row["wait_due"], row["deadline_due"]),
        lease_left_ms=_left(tx, row["lease_due"]),
        usage=result.usage,
        error=result.error,
        receipt=result.receipt,
        output=result.output,
        rehearsal=bool(row["rehearsal"]),
        ttft_ms=result.ttft_ms,
    )


def position(tx: Tx, row: sqlite3.Row) -> int | None:
    """While queued: how many runs of its session are before it."""
    if row["state"] != State.QUEUED:
        return None
    if row["slot"]:
        return 0
    before = tx.one(
        "SELECT count(*) AS c FROM runs "
        "WHERE tenant = ? AND session = ? AND state = 'queued' AND slot = 0 AND rank < ?",
        row["tenant"],
        row["session"],
        row["rank"],
    )
    return 1 + (before["c"] if before else 0)


def _left(tx: Tx, *dues: int | None) -> int | None:
    known = [due for due in dues if due is not None]
    return max(0, min(known) - tx.now) if known else None
