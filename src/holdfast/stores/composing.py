"""What a store writes by itself: ends from outside, derived histories, runs out of unread input. For every adapter.

All of it is a pure function of what the store has: the row, the spec, the log's digest, the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from holdfast.domain.digest import Digest, OpenCall
from holdfast.domain.errors import run_error
from holdfast.domain.events import EventType, moment_ms
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.receipts import reaper_receipt
from holdfast.domain.runs import Policy, Reason, State, Trigger
from holdfast.ports.store import Ending, RunSpec

_STARTED: Final = b'"type":"' + EventType.RUN_STARTED.encode() + b'"'
_TYPE_BEFORE_BYTE: Final = 256  # seq and run come first, and are bounded
_TYPES: Final = {State.FAILED: EventType.RUN_FAILED, State.CANCELLED: EventType.RUN_CANCELLED}
_REMEDIES: Final = {
    Reason.WORKER_LOST: ("worker_lost", "the worker that held the run is gone", "send the prompt again"),
    Reason.DEADLINE: ("deadline", "the run's deadline passed", "raise deadline_s, or ask for less"),
    Reason.AGENT_ERROR: (
        "loop_blocked",
        "the run blocked its worker's event loop, and the worker was killed",
        "do not block in async code: make the tool a plain function, or use asyncio",
    ),
    Reason.QUEUE_TIMEOUT: (
        "queue_timeout",
        "no worker took the run in time",
        "add workers, or raise queue_timeout_s",
    ),
}
_UNDECIDED: Final = (
    "approval_deadline",
    "the run waited for a decision, and none came in time",
    "decide sooner, or raise approval_deadline_s",
)
FINISHES: Final = {
    State.COMPLETED: Trigger.COMPLETE,
    State.FAILED: Trigger.FAIL,
    State.CANCELLED: Trigger.CANCEL,
}
TIMERS: Final = (
    # what is due, after which timer, and whether its holder is given time to act first; in this order
    (Trigger.STOP, "listener", False),
    (Trigger.STOP_UNANSWERED, "stop", True),
    (Trigger.TIME_UP, "deadline", True),
    (Trigger.TIME_UP, "wait", False),
    (Trigger.LEASE_LOST, "lease", False),
)
REAP_GAP_MS_MAX: Final = 3000
OVERDUE_MS: Final = 10_000  # beyond its deadline, or a word to stop: nobody ends a run that somebody should have ended
LINGER_MS: Final = 60_000  # a run of a forgotten session is still readable this long after its end
PAGE_BYTES: Final = 256 * 1024
DRAIN_MS: Final = 60_000  # a refused create is told how many runs ended in this time ...
DRAIN_RUNS: Final = 64  # ... of the last so many; of one tenant, four times as many are looked at


class Result(msgspec.Struct, omit_defaults=True):
    """What a record shows of an end."""

    usage: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None
    output: str | None = None
    ttft_ms: int | None = None


def result_of(ending: Ending) -> Result:
    """The part of `ending` that records show."""
    return Result(
        usage=ending.usage,
        error=ending.error,
        receipt=ending.receipt,
        output=ending.output,
        ttft_ms=ending.ttft_ms,
    )


def begins(events: Sequence[bytes]) -> bool:
    """Whether a run.started is among `events`."""
    return any(_STARTED in event[:_TYPE_BEFORE_BYTE] for event in events)


def end_from_outside(
    fold: Digest, state: State, reason: Reason, by: str, *, asked_at: int, wall: int, killed: bool, cut_off: bool
) -> tuple[list[tuple[EventType, dict[str, Any]]], Ending]:
    """The last events of a run that no worker writes any more, and the ending that goes with them.

    Every call that has no end is given one, then comes the terminal event.

    Args:
        fold: The log's digest.
        state: failed or cancelled.
        reason: Why.
        by: Who asked, for run.cancelled.
        asked_at: Since when it was to end.
        wall: When it does.
        killed: Whether the process that worked on it is known to be dead.
        cut_off: Whether it may still work on it: it held the run and did not answer.
    """
    open_calls = fold.open_calls()
    receipt = reaper_receipt(asked_at, wall, open_calls, killed=killed, cut_off=cut_off, unbegun=fold.asked)
    usage, partial = fold.usage(), fold.partial()
    fields: dict[str, Any] = {"reason": reason}
    error = None
    if state is State.FAILED:
        code, message, remedy = _UNDECIDED if fold.asked and reason is Reason.DEADLINE else _REMEDIES[reason]
        error = fields["error"] = run_error(code, message, None, remedy, retryable=True)
    else:
        fields["by"] = by
    fields |= {"partial": partial, "usage": usage, "receipt": receipt}
    ending = Ending(
        state,
        reason,
        usage=usage,
        error=error,
        receipt=receipt,
        output=partial or None,
        ttft_ms=fold.ttft_ms,
        leave_inbox=True,
    )
    closed = [(EventType.TOOL_FINISHED, _interrupted(call, wall)) for call in open_calls]
    return [*closed, (_TYPES[state], fields)], ending


def _interrupted(call: OpenCall, wall: int) -> dict[str, Any]:
    """The end of a call that its worker did not write; what became of it is in the receipt."""
    return call.cut_short(max(0, wall - moment_ms(call.at)) if call.at else None)


def derived_entry(
    run: str, spec: RunSpec, state: State, fold: Digest, checkpoint: bytes | None, tail: Digest | None
) -> HistoryEntry:
    """What the run leaves in its session, as a pure function of input, last checkpoint and log.

    `tail` is the digest of what came after `checkpoint`; both or neither.
    """
    completed = state is State.COMPLETED
    messages = fold.messages(completed=completed, user=spec.input)
    entry = HistoryEntry(run=run, state=state, messages=messages, before=spec.before)
    if checkpoint is None or tail is None or not spec.kind:
        return entry
    rest = tail.messages(completed=completed, user="")
    return msgspec.structs.replace(entry, native_kind=spec.kind, native=checkpoint, tail=rest)


def follow_up(spec: RunSpec, inputs: Sequence[str]) -> RunSpec:
    """The spec of the run that steered inputs become which nobody read."""
    return msgspec.structs.replace(spec, input="\n\n".join(inputs), context=[])


def created_fields(session: str, spec: RunSpec, policy: Policy) -> dict[str, Any]:
    """The fields of run.created."""
    return {"session": session, "agent": spec.agent, "policy": policy, "input": spec.input}
