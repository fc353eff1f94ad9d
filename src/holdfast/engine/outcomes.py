"""How a run's work ended, as its executor saw it; and the terminal event that says so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from holdfast.domain.digest import Digest, OpenCall
from holdfast.domain.errors import RunEnded, StoreUnavailable, exit_in, run_error
from holdfast.domain.events import EventType
from holdfast.domain.receipts import Ended, ToolEnd, receipt
from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import Result
from holdfast.ports.probe import Probe


@dataclass(frozen=True)
class Told:
    """What an executor is told from outside; the first word counts."""

    what: str  # stop, release, lost
    reason: Reason | None = None
    by: str = ""
    requested_ms: int = 0  # wall


@dataclass(frozen=True)
class Outcome:
    """How the work ended."""

    state: State
    reason: Reason
    by: str = ""
    requested_ms: int = 0  # wall; of the stop, or of the failure
    result: Result | None = None
    error: dict[str, Any] | None = None
    abandoned: bool = False
    open_before: tuple[OpenCall, ...] = ()  # tool calls that were open when the end was asked for
    ends: tuple[ToolEnd, ...] = ()  # what became of those


def failure(error: BaseException, now_ms: int) -> Outcome:
    """The outcome of an agent that raised."""
    left = exit_in(error)
    if left is not None:
        error = left.ended()
    if isinstance(error, RunEnded):
        return Outcome(State.FAILED, error.reason, requested_ms=now_ms, error=error.to_error())
    name = type(error).__name__
    text = f"{name}: {error}" if str(error) else name
    described = run_error(
        "agent_error", text, name, "see the server's log for the trace; correct the agent's code", retryable=False
    )
    return Outcome(State.FAILED, Reason.AGENT_ERROR, requested_ms=now_ms, error=described)


def store_failure(error: StoreUnavailable, now_ms: int) -> Outcome:
    """The outcome of a run whose store did not answer for too long."""
    remedy = error.remedy if error.full else "check the store; /readyz says more"
    described = run_error("store_error", error.detail, None, remedy, retryable=True)
    return Outcome(State.FAILED, Reason.STORE_ERROR, requested_ms=now_ms, error=described)


def internal_failure(error: Exception, now_ms: int) -> Outcome:
    """The outcome of a run that met a fault of ours."""
    name = type(error).__name__
    remedy = "this is a fault in Holdfast: report it with the server's log"
    described = run_error("internal", f"{name}: {error}", name, remedy, retryable=True)
    return Outcome(State.FAILED, Reason.AGENT_ERROR, requested_ms=now_ms, error=described)


def deadline_error(deadline_s: float) -> dict[str, Any]:
    """The error object of a run whose deadline passed."""
    return run_error(
        "deadline",
        f"the run was not finished {deadline_s:g} s after it was ready",
        None,
        "raise deadline_s, or ask for less",
        retryable=True,
    )


def terminal(
    outcome: Outcome, fold: Digest, probe: Probe, timings: dict[str, Any], now_ms: int
) -> tuple[EventType, dict[str, Any]]:
    """The terminal event's type and fields."""
    usage = fold.usage()
    if outcome.state is State.COMPLETED:
        output = outcome.result.output if outcome.result else fold.text()
        return EventType.RUN_COMPLETED, {"output": output, "usage": usage, "timings": timings}
    fields: dict[str, Any] = {"reason": outcome.reason}
    if outcome.state is State.FAILED:
        fields["error"] = outcome.error
    else:
        fields["by"] = outcome.by
    fields |= {
        "partial": outcome.result.output if outcome.result else fold.partial(),
        "usage": usage,
        "receipt": receipt(
            requested_ms=outcome.requested_ms,
            ended_ms=now_ms,
            upstream_closed_ms=_upstream_closed(probe, outcome.requested_ms, now_ms),
            tools=list(outcome.ends),
            abandoned=outcome.abandoned or any(end.ended == "abandoned" for end in outcome.ends),
            by="worker",
        ),
        "timings": timings,
    }
    return (EventType.RUN_FAILED if outcome.state is State.FAILED else EventType.RUN_CANCELLED), fields


def tool_ends(outcome: Outcome, fold: Digest, probe: Probe) -> tuple[ToolEnd, ...]:
    """What became of each tool call that was open when the end was asked for; before the log closes them."""
    still_open = {call.call for call in fold.open_calls()}
    working = probe.threads_running() | probe.processes_running() | set(probe.tools_running())
    killed = probe.processes_killed()
    ends = []
    for call in outcome.open_before:
        ended: Ended = "finished"
        if call.call in working:
            ended = "abandoned"
        elif call.call in still_open:
            ended = "killed" if call.call in killed else "cancelled"
        ends.append(ToolEnd(call.call, call.name, ended))
    return tuple(ends)


def _upstream_closed(probe: Probe, requested_ms: int, now_ms: int) -> int | None:
    """Milliseconds from the request to the close of the last model connection; None if none was open, or one is."""
    if probe.upstreams_open or probe.upstream_closed_at is None:
        return None
    closed_ms = now_ms - (time.monotonic() - probe.upstream_closed_at) * 1000
    # A millisecond of tolerance: the two clocks are read one after the other.
    return max(0, round(closed_ms - requested_ms)) if closed_ms >= requested_ms - 1 else None
