"""The log's table: appending events, and folding what is there."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from holdfast.domain.digest import Digest
from holdfast.domain.events import EventType, decode_event, encode_event
from holdfast.ports.store import run_topic
from holdfast.stores.sqlite.rows import key_of
from holdfast.stores.sqlite.tx import Tx


def write(tx: Tx, row: sqlite3.Row, events: Sequence[bytes], epoch: int) -> int:
    """Append encoded events after the row's head and return the new head."""
    head: int = row["head"] + len(events)
    tx.many(
        "INSERT INTO events (run, seq, epoch, data) VALUES (?, ?, ?, ?)",
        [(row["n"], seq, epoch, data) for seq, data in enumerate(events, row["head"] + 1)],
    )
    tx.run(
        "UPDATE runs SET head = ?, log_bytes = log_bytes + ? WHERE n = ?",
        head,
        sum(map(len, events)),
        row["n"],
    )
    tx.wakes.add(run_topic(key_of(row)))
    return head


def write_event(tx: Tx, row: sqlite3.Row, kind: EventType, fields: dict[str, Any], epoch: int) -> int:
    """Compose and append one event of the store's own."""
    return write_events(tx, row, [(kind, fields)], epoch)


def write_events(tx: Tx, row: sqlite3.Row, events: Sequence[tuple[EventType, dict[str, Any]]], epoch: int) -> int:
    """Compose and append events of the store's own."""
    encoded = [
        encode_event(seq, row["id"], kind, tx.wall, fields)
        for seq, (kind, fields) in enumerate(events, row["head"] + 1)
    ]
    return write(tx, row, encoded, epoch)


def holds(tx: Tx, row: sqlite3.Row, base: int, events: Sequence[bytes]) -> bool:
    """Whether the log has exactly `events` after `base`, written in the row's epoch, and nothing more."""
    if row["head"] != base + len(events):
        return False
    found = tx.all("SELECT epoch, data FROM events WHERE run = ? AND seq > ? ORDER BY seq", row["n"], base)
    return [(r["epoch"], r["data"]) for r in found] == [(row["epoch"], data) for data in events]


def digest(tx: Tx, n: int, after: int = 0) -> Digest:
    """The fold of a log, or of its end."""
    found = tx.all("SELECT data FROM events WHERE run = ? AND seq > ? ORDER BY seq", n, after)
    return Digest(decode_event(r["data"]) for r in found)
