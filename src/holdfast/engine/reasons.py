"""Why a run is not finished, put together: its record, its session, and what its worker says of it.

Everything is of the run's own tenant. What cannot be had in half a second is left out, not waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from holdfast.aio import Owner, settle
from holdfast.domain.events import decode_event, moment_ms
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import State
from holdfast.ports.store import RunRecord, RunStore

_LIMIT_S: Final = 0.5
_LEFT_BEHIND: Final = frozenset({"tools", "threads", "stacks", "abandoned_tasks", "quarantined"})  # by an ended run


async def inspection(store: RunStore, record: RunRecord, held: dict[str, Any] | None) -> dict[str, Any]:
    """The answer to inspect.

    Args:
        store: For what is around the run.
        record: The run.
        held: What its worker says; None where no worker answers for it.
    """
    around = await _around(store, record)
    told = dict(held) if held is not None else {}
    repair = told.pop("repair", None) or None
    if record.state.terminal:
        told = {name: value for name, value in told.items() if name in _LEFT_BEHIND}
    waits = _without_worker(record, around) if not told or record.state.terminal else {}
    timers = [{"name": "lease", "left_ms": record.lease_left_ms}, {"name": "due", "left_ms": record.due_in_ms}]
    return {
        "run": record.key.run,
        "state": record.state,
        "reason": record.reason,
        "stopping": record.stopping,
        "worker": record.worker,
        "attempt": record.attempt,
        "seq": record.seq,
        "error": record.error,
        **told,
        **waits,
        "timers": [t for t in timers if t["left_ms"] is not None] + told.get("timers", []),
        "history": {**history_shape(around.get("history") or ()), "repair": repair},
    }


def history_shape(entries: Iterable[HistoryEntry]) -> dict[str, Any]:
    """What the session's history is made of: whose form, how the runs ended, which roles and parts; no content."""
    kinds: Counter[str] = Counter()
    states: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for entry in entries:
        kinds[entry.native_kind or "neutral"] += 1
        states[str(entry.state)] += 1
        for message in entry.messages:
            roles[message.role] += 1
            parts["text"] += bool(message.text)
            parts["call"] += len(message.calls)
            parts["result"] += message.role == "tool"
            parts["interrupted"] += bool(message.interrupted) or message.outcome == "interrupted"
    return {
        "runs": sum(states.values()),
        "kinds": dict(kinds),
        "states": dict(states),
        "roles": dict(roles),
        "parts": {name: n for name, n in parts.items() if n},
    }


def _without_worker(record: RunRecord, around: dict[str, Any]) -> dict[str, Any]:
    """What a run waits on that no worker works on."""
    if record.state.terminal:
        why = record.error["code"] if record.error else record.reason
        return {"waiting_on": "nothing: it has ended", "since_ms": None, "phase": "ended", "why": why}
    if record.state is State.WAITING:
        return {"waiting_on": "a decision", "since_ms": _ago(_parked_at(around)), "phase": "waiting"}
    if record.state is State.RUNNING:
        return {"waiting_on": "its worker, which does not answer here", "since_ms": None, "phase": "running"}
    if record.position:
        active = around.get("active")
        first = active.key.run if active is not None else None
        return {
            "waiting_on": f"the {record.position} before it in its session",
            "since_ms": _ago(record.created_at),
            "phase": "queued",
            "behind": first,
        }
    since_ms = _ago(record.ready_at or record.created_at)
    workers = _workers(around.get("workers"))
    return {"waiting_on": "a worker", "since_ms": since_ms, "phase": "queued", "workers": workers}


def _parked_at(around: dict[str, Any]) -> int | None:
    """When the last event of a run was written that waits: it asked, or somebody decided about a part of that."""
    page = around.get("last")
    return moment_ms(decode_event(page.events[-1])["ts"]) if page is not None and page.events else None


def _ago(wall_ms: int | None) -> int | None:
    return None if wall_ms is None else max(0, int(time.time() * 1000) - wall_ms)


def _workers(records: Any) -> dict[str, int] | None:
    """How many workers there are, and how many could take a run now."""
    if records is None:
        return None
    free = [
        r for r in records if r.facts.get("accepting", True) and r.facts.get("runs", 0) < r.facts.get("concurrency", 1)
    ]
    return {"seen": len(records), "free": len(free)}


async def _around(store: RunStore, record: RunRecord) -> dict[str, Any]:
    """The session's history, its active run, who works, the last event: each if it is needed, and comes in time."""
    tenant, session = record.key.tenant, record.session
    owner = Owner(_left_out)
    tasks: dict[str, asyncio.Task[Any]] = {"history": owner.spawn(_told(store.history(tenant, session)), "history")}
    if record.state is State.QUEUED:
        tasks["active"] = owner.spawn(_told(store.active(tenant, session)), "active")
        tasks["workers"] = owner.spawn(_told(store.workers()), "workers")
    if record.state is State.WAITING:
        tasks["last"] = owner.spawn(_told(store.read(record.key, record.seq - 1, 1)), "last")
    for late in await settle(tasks.values(), _LIMIT_S):
        late.cancel()
    done = {name: task for name, task in tasks.items() if task.done() and not task.cancelled()}
    return {name: task.result() for name, task in done.items() if task.exception() is None}


async def _told(asked: Any) -> Any:
    return await asked


def _left_out(name: str, error: BaseException) -> None:
    """The answer shows that it is not there: what is asked here only explains."""
    del name, error
