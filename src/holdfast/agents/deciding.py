"""Decisions about deferred calls: pydantic-ai's requests as ours, and our decisions as pydantic-ai's results.

A call waits for a decision where its tool has `requires_approval=True`, raises `ApprovalRequired` or `CallDeferred`,
or is external. Everything else of its step has ended by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic_ai import DeferredToolRequests, ToolFailed
from pydantic_ai.messages import ToolCallPart, ToolReturn
from pydantic_ai.tools import DeferredToolResults, ToolApproved, ToolDenied

from holdfast.agents.checkpoint import Finished
from holdfast.agents.results import args_of, jsonable
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.ports.agent import Request

APPROVAL: Final = "approval"
DENIED: Final = "The call was denied."


def requests_of(deferred: DeferredToolRequests, open_calls: Sequence[ToolCallPart]) -> list[Request]:
    """What is asked, for those who decide."""
    approvals = {part.tool_call_id for part in deferred.approvals}
    return [
        Request(
            part.tool_call_id,
            part.tool_name,
            args_of(part),
            "approval" if part.tool_call_id in approvals else "call",
            jsonable(deferred.metadata.get(part.tool_call_id, {})),
        )
        for part in open_calls
    ]


def results_of(
    deferred: DeferredToolRequests,
    decisions: Mapping[str, Mapping[str, Any]],
    finished: Mapping[str, Finished],
    outcomes: dict[str, str],
) -> DeferredToolResults:
    """What was decided, for the loop; a call that ended in an earlier attempt gets the result that it had then.

    Raises:
        RunEnded: Whoever runs the agent was asked, and goes on without an answer.
    """
    calls = [part.tool_call_id for part in [*deferred.approvals, *deferred.calls]]
    if any(call not in decisions and call not in finished for call in calls):
        raise RunEnded(Reason.AGENT_ERROR, "undecided", f"nobody decided about {', '.join(calls)}")
    results = DeferredToolResults()
    for part in deferred.approvals:
        call = part.tool_call_id
        if call in finished and finished[call].part.outcome == "denied":
            results.approvals[call] = ToolDenied(str(finished[call].part.content))
        elif call in finished:
            results.approvals[call] = ToolApproved()  # its result is taken from the checkpoint
        elif decisions[call].get("approve"):
            results.approvals[call] = ToolApproved(override_args=decisions[call].get("args"))
        else:
            results.approvals[call] = ToolDenied(decisions[call].get("message") or DENIED)
    for part in deferred.calls:
        call = part.tool_call_id
        results.calls[call] = _result_of(call, decisions, finished, outcomes)
    return results


def _result_of(
    call: str,
    decisions: Mapping[str, Mapping[str, Any]],
    finished: Mapping[str, Finished],
    outcomes: dict[str, str],
) -> ToolReturn | ToolFailed:
    if call in finished:
        part = finished[call].part
        if part.outcome == "success":
            return ToolReturn(return_value=part.content, content=finished[call].content, metadata=part.metadata)
        return ToolFailed(str(part.content))
    if "result" in decisions[call]:
        return ToolReturn(return_value=decisions[call]["result"])
    outcomes[call] = "denied"
    return ToolFailed(decisions[call].get("message") or DENIED)
