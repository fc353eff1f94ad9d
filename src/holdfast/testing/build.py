"""Makes what a store is called with: creates, events, endings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.domain.events import EventType, encode_event
from holdfast.domain.ids import LOCAL_TENANT, RunKey, new_run_id
from holdfast.domain.runs import REASONS, Policy, Reason, State
from holdfast.ports.store import Limits, NewRun, RunSpec

HOUR_MS = 3_600_000
CALM = Limits(
    deadline_ms=100 * HOUR_MS,
    queue_timeout_ms=100 * HOUR_MS,
    session_wait_ms=100 * HOUR_MS,
    runs_active_max=100_000,
)
"""Limits that no test runs into by accident."""

Draft = tuple[EventType, dict[str, Any]]
"""An event before it has a place in a log."""

_WALL_MS = 1_767_225_600_000
_TERMINAL_TYPE = {
    State.COMPLETED: EventType.RUN_COMPLETED,
    State.FAILED: EventType.RUN_FAILED,
    State.CANCELLED: EventType.RUN_CANCELLED,
}
_USUAL_REASON = {
    State.COMPLETED: Reason.FINISHED,
    State.FAILED: Reason.AGENT_ERROR,
    State.CANCELLED: Reason.STOPPED,
}


def new_run(
    session: str = "s",
    *,
    run: str = "",
    tenant: str = LOCAL_TENANT,
    text: str = "hello",
    policy: Policy = Policy.ENQUEUE,
    idempotency_key: str = "",
    body_hash: str = "",
    limits: Limits = CALM,
    follows: str = "",
) -> NewRun:
    """A create with limits that do not matter unless given."""
    return NewRun(
        key=RunKey(tenant, run or new_run_id()),
        session=session,
        spec=RunSpec(input=text, agent="echo"),
        policy=policy,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
        limits=limits,
        follows=follows,
    )


def encode(run: str, base: int, drafts: Sequence[Draft]) -> list[bytes]:
    """The bytes of `drafts`, placed after `base`."""
    return [
        encode_event(base + place, run, kind, _WALL_MS, fields) for place, (kind, fields) in enumerate(drafts, start=1)
    ]


def text(part: int, value: str) -> Draft:
    """A piece of text."""
    return EventType.TEXT_DELTA, {"part": part, "text": value}


def text_done(part: int, value: str) -> Draft:
    """A whole text."""
    return EventType.TEXT_DONE, {"part": part, "text": value}


def tool_called(call: str, name: str = "look", **args: Any) -> Draft:
    """A tool call that has no end yet."""
    return EventType.TOOL_CALLED, {"call": call, "name": name, "args": args}


def tool_finished(call: str, result: Any, name: str = "look") -> Draft:
    """The good end of a tool call."""
    fields = {"call": call, "name": name, "outcome": "success", "result": result, "duration_ms": 3}
    return EventType.TOOL_FINISHED, fields


def model_responded(step: int, input_tokens: int, output_tokens: int) -> Draft:
    """A whole model response with its usage."""
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    fields = {"step": step, "model": "m", "finish_reason": "stop", "usage": usage}
    return EventType.MODEL_RESPONDED, {**fields, "ttft_ms": 1, "duration_ms": 2}


def discarded(*, parts: Sequence[int] = (), calls: Sequence[str] = ()) -> Draft:
    """What readers drop before the next attempt."""
    fields = {"step": 1, "reason": "resumed", "parts": list(parts), "calls": list(calls)}
    return EventType.ATTEMPT_DISCARDED, fields


def usual_reason(state: State) -> Reason:
    """A reason that goes with `state`."""
    return _USUAL_REASON[state]


def terminal(state: State, reason: Reason) -> Draft:
    """The terminal event of a run that ends so."""
    if reason not in REASONS[state]:
        raise ValueError(f"no run ends {state} with reason {reason}; see domain.runs.REASONS")
    fields: dict[str, Any] = {"usage": {}}
    match state:
        case State.COMPLETED:
            fields |= {"output": "", "timings": {}}
        case State.FAILED:
            fields |= {"reason": reason, "error": {"code": reason}, "partial": "", "receipt": None}
        case _:
            fields |= {"reason": reason, "by": "test", "partial": "", "receipt": None}
    return _TERMINAL_TYPE[state], fields
