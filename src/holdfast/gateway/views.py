"""Records as JSON: what GET answers. These structs are also the schemas in /openapi.json."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.domain.events import timestamp
from holdfast.domain.runs import Policy, Reason, State
from holdfast.engine.sessions import SessionView
from holdfast.ports.store import RunRecord, SessionRecord, WorkerRecord

LISTED_INPUT_CHARACTERS = 280


class Timings(msgspec.Struct):
    """Milliseconds; null while the phase has not ended. `ttft_ms` is from creation to the first content."""

    queued_ms: int | None
    ttft_ms: int | None
    running_ms: int | None
    total_ms: int | None


class RunView(msgspec.Struct):
    """A run record."""

    id: str
    session: str
    agent: str
    model: str
    state: State
    reason: Reason | None
    stopping: Reason | None
    seq: int
    epoch: int
    attempt: int
    worker: str | None
    policy: Policy
    position: int | None
    usage: dict[str, Any]
    timings: Timings
    error: dict[str, Any] | None
    receipt: dict[str, Any] | None
    rehearsal: bool
    input: str
    output: str | None
    metadata: dict[str, Any]
    on_disconnect: str
    protocol: str
    build: str
    config: str
    trace: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    due_in_ms: int | None
    waits_for: list[str] | msgspec.UnsetType = msgspec.UNSET  # calls that somebody has to decide about


class RunList(msgspec.Struct):
    """Newest first; `next` goes into `after` for the page that follows."""

    runs: list[RunView]
    next: str | None


class SessionItem(msgspec.Struct):
    """A session in a list."""

    id: str
    created_at: str
    updated_at: str
    runs: int
    queued: int
    active: RunView | None


class SessionList(msgspec.Struct):
    """Most recently used first."""

    sessions: list[SessionItem]
    next: str | None


class SessionPage(msgspec.Struct):
    """A session: what was said, what runs, what waits behind it."""

    id: str
    created_at: str
    updated_at: str
    messages: list[dict[str, Any]]
    active: RunView | None
    queue: list[RunView]


class StoppedSession(msgspec.Struct):
    """What a stop of a session met: the run that was active, or null."""

    session: str
    run: RunView | None


class WorkerView(msgspec.Struct):
    """A worker as it last reported itself."""

    worker: str
    seen_at: str
    facts: dict[str, Any]


class AgentView(msgspec.Struct):
    """A served agent."""

    name: str
    kind: str
    model: str
    resumable: bool
    rehearsal: bool


class Workers(msgspec.Struct):
    """Who works, and what is served."""

    workers: list[WorkerView]
    agents: list[AgentView]


def run_view(record: RunRecord, *, listed: bool = False, waits_for: list[str] | None = None) -> RunView:
    """A record as JSON; in lists the input and the output are cut."""
    spec = record.spec
    return RunView(
        id=record.key.run,
        session=record.session,
        agent=spec.agent,
        model=spec.model,
        state=record.state,
        reason=record.reason,
        stopping=record.stopping if not record.state.terminal else None,
        seq=record.seq,
        epoch=record.epoch,
        attempt=record.attempt,
        worker=record.worker or None,
        policy=record.policy,
        position=record.position,
        usage=record.usage,
        timings=_timings(record),
        error=record.error,
        receipt=record.receipt,
        rehearsal=record.rehearsal or spec.rehearsal,
        input=spec.input[:LISTED_INPUT_CHARACTERS] if listed else spec.input,
        output=_cut(record.output) if listed else record.output,
        metadata=spec.metadata,
        on_disconnect=spec.on_disconnect,
        protocol=spec.protocol,
        build=spec.build,
        config=spec.config,
        trace=spec.trace,
        created_at=timestamp(record.created_at),
        started_at=_moment(record.started_at),
        ended_at=_moment(record.ended_at),
        due_in_ms=record.due_in_ms,
        waits_for=waits_for or msgspec.UNSET,
    )


def session_item(record: SessionRecord) -> SessionItem:
    """A session in a list."""
    return SessionItem(
        id=record.session,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
        runs=record.runs,
        queued=record.queued,
        active=None if record.active is None else run_view(record.active, listed=True),
    )


def session_page(view: SessionView) -> SessionPage:
    """A session with its messages; each message names the run it came from and how that ended."""
    messages = [
        {**msgspec.to_builtins(message), "run": entry.run, "state": entry.state}
        for entry in view.history
        for message in [*entry.before, *entry.messages]
    ]
    return SessionPage(
        id=view.record.session,
        created_at=timestamp(view.record.created_at),
        updated_at=timestamp(view.record.updated_at),
        messages=messages,
        active=None if view.active is None else run_view(view.active),
        queue=[run_view(record, listed=True) for record in view.queue],
    )


def worker_view(record: WorkerRecord) -> WorkerView:
    """A worker with the facts it reported."""
    return WorkerView(worker=record.worker, seen_at=timestamp(record.seen_at), facts=record.facts)


def _timings(record: RunRecord) -> Timings:
    left_queue = record.started_at or record.ended_at
    return Timings(
        queued_ms=_between(record.created_at, left_queue),
        ttft_ms=record.ttft_ms,
        running_ms=_between(record.started_at, record.ended_at),
        total_ms=_between(record.created_at, record.ended_at),
    )


def _between(start: int | None, end: int | None) -> int | None:
    return None if start is None or end is None else max(0, end - start)


def _moment(wall_ms: int | None) -> str | None:
    return None if wall_ms is None else timestamp(wall_ms)


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:LISTED_INPUT_CHARACTERS]
