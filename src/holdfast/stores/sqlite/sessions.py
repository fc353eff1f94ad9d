"""Sessions: lists, history, and forgetting one."""

from __future__ import annotations

import sqlite3

import msgspec

from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Reason
from holdfast.ports.store import RunRecord, SessionRecord, Status, list_topic
from holdfast.stores.sqlite.creating import stop_row
from holdfast.stores.sqlite.rows import LIVE, record_of
from holdfast.stores.sqlite.telling import keep
from holdfast.stores.sqlite.tx import Tx

_entry = msgspec.json.Decoder(HistoryEntry)


def active(tx: Tx, tenant: str, session: str) -> RunRecord | None:
    """Who holds the slot."""
    row = tx.one("SELECT * FROM runs WHERE tenant = ? AND session = ? AND slot = 1", tenant, session)
    return None if row is None else record_of(tx, row)


def history(tx: Tx, tenant: str, session: str) -> list[HistoryEntry]:
    """What ended runs left, in the order in which they were asked."""
    found = tx.all("SELECT entry FROM history WHERE tenant = ? AND session = ? ORDER BY run", tenant, session)
    return [_entry.decode(row["entry"]) for row in found]


def get_session(tx: Tx, tenant: str, session: str) -> SessionRecord | None:
    """One session that was not forgotten."""
    row = tx.one("SELECT * FROM sessions WHERE tenant = ? AND id = ? AND deleted = 0", tenant, session)
    return None if row is None else _record(tx, row)


def list_sessions(tx: Tx, tenant: str, limit: int, after: str) -> list[SessionRecord]:
    """Most recently used first."""
    rows = tx.all(
        "SELECT s.* FROM sessions s WHERE s.tenant = ?1 AND s.deleted = 0 AND (?2 = '' OR (s.updated_at, s.id) < "
        "(SELECT updated_at, id FROM sessions WHERE tenant = ?1 AND id = ?2)) "
        "ORDER BY s.updated_at DESC, s.id DESC LIMIT ?3",
        tenant,
        after,
        limit,
    )
    return [_record(tx, row) for row in rows]


def delete_session(tx: Tx, tenant: str, session: str, by: str) -> Status:
    """A new generation: what was before is stopped, its history dropped, its logs marked gone."""
    if get_session(tx, tenant, session) is None:
        return Status.UNKNOWN
    tx.run(
        "UPDATE sessions SET generation = generation + 1, deleted = 1, updated_at = ? WHERE tenant = ? AND id = ?",
        tx.wall,
        tenant,
        session,
    )
    rows = tx.all(
        f"SELECT * FROM runs WHERE tenant = ? AND session = ? AND {LIVE} ORDER BY slot, rank",  # noqa: S608 - a constant  # nosec B608
        tenant,
        session,
    )
    for row in rows:
        keep(tx, stop_row(tx, row, Reason.STOPPED, by))  # reap hands them out
    tx.run("DELETE FROM history WHERE tenant = ? AND session = ?", tenant, session)
    tx.run(
        "UPDATE runs SET gone = ? WHERE tenant = ? AND session = ? AND ended_at IS NOT NULL AND gone = 0",
        tx.wall,
        tenant,
        session,
    )
    tx.wakes.add(list_topic(tenant))
    return Status.OK


def _record(tx: Tx, row: sqlite3.Row) -> SessionRecord:
    tenant, session = row["tenant"], row["id"]
    counts = tx.one(
        "SELECT count(*) AS runs, sum(state = 'queued' AND slot = 0) AS queued FROM runs "
        "WHERE tenant = ? AND session = ? AND gone = 0",
        tenant,
        session,
    )
    return SessionRecord(
        session=session,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        active=active(tx, tenant, session),
        queued=(counts["queued"] or 0) if counts else 0,
        runs=counts["runs"] if counts else 0,
    )
