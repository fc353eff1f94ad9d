"""Who tells of an end that no worker wrote: the step's caller, or whoever begins the session's next run.

A line that is written after its step is in a race with every process that sees the step. So the step itself decides:
where another run of the session is to begin, the end stays `unsaid`, and the claim of that run takes it along.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Ended
from holdfast.stores.sqlite.rows import LIVE, key_of, spec_of
from holdfast.stores.sqlite.tx import Tx

_CLEAN: Final = 1
_CUT_OFF: Final = 2


def hand_over(tx: Tx, row: sqlite3.Row, *, cut_off: bool) -> list[Ended]:
    """Decide who tells of the end of `row`, which it has just come to; what the caller has to tell."""
    tx.run("UPDATE runs SET unsaid = ? WHERE n = ?", _CUT_OFF if cut_off else _CLEAN, row["n"])
    if not row["slot"]:  # no run begins because of it
        return _take(tx, tx.all("SELECT * FROM runs WHERE n = ?", row["n"]))
    live = tx.one(
        f"SELECT 1 FROM runs WHERE tenant = ? AND session = ? AND {LIVE} LIMIT 1",  # noqa: S608 - a constant  # nosec B608
        row["tenant"],
        row["session"],
    )
    return [] if live is not None else take(tx, row["tenant"], row["session"])


def keep(tx: Tx, ends: list[Ended]) -> None:
    """Leave ends that were handed out to the next run of their session after all."""
    for end in ends:
        untold = _CUT_OFF if end.cut_off else _CLEAN
        tx.run("UPDATE runs SET unsaid = ? WHERE tenant = ? AND id = ?", untold, end.key.tenant, end.key.run)


def take(tx: Tx, tenant: str, session: str) -> list[Ended]:
    """What is untold in a session; the caller tells it."""
    query = "SELECT * FROM runs WHERE tenant = ? AND session = ? AND unsaid > 0 ORDER BY ended_at, n"
    return _take(tx, tx.all(query, tenant, session))


def take_forgotten(tx: Tx, limit: int) -> list[Ended]:
    """What is untold where no run is left that could take it along."""
    rows = tx.all(
        "SELECT * FROM runs r WHERE unsaid > 0 AND NOT EXISTS (SELECT 1 FROM runs l WHERE l.tenant = r.tenant AND "
        "l.session = r.session AND l.state IN ('queued', 'running', 'waiting')) ORDER BY ended_at, n LIMIT ?",
        limit,
    )
    return _take(tx, rows)


def _take(tx: Tx, rows: list[sqlite3.Row]) -> list[Ended]:
    for row in rows:
        tx.run("UPDATE runs SET unsaid = 0 WHERE n = ?", row["n"])
    return [
        Ended(
            key=key_of(row),
            session=row["session"],
            trace=spec_of(tx, row["n"]).trace,
            state=State(row["state"]),
            reason=Reason(row["reason"]),
            by=row["stop_by"],
            cut_off=row["unsaid"] == _CUT_OFF,
            created_at=row["created_at"],
            ended_at=row["ended_at"],
        )
        for row in rows
    ]
