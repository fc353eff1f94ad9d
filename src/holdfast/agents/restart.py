"""Asks for a model response anew after a part of it was shown and its stream broke.

Where this lives: the guard under pydantic-ai's stream cannot do it, for the stream above it has the broken parts and
their indexes; nor need the whole run begin again. A node of pydantic-ai's graph streams once, so the request becomes
a new node, and the history is what it was before the broken one. Tools, toolsets and the agent's own state stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from pydantic_ai import AgentRun, ModelRequestNode
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart

LEFT_S: Final = 1.0  # with less time before the run's deadline a fresh start would only hide why the run failed


def afresh(run: AgentRun[Any, Any], node: ModelRequestNode[Any, Any]) -> ModelRequestNode[Any, Any]:
    """A node that makes the same request; takes what the broken one left in the run's history out of it.

    What was streamed stays in the run's usage, for it was paid for. The request does not: only a response that the
    agent acted on counts towards its limit, as with the library's own fallbacks.
    """
    state = run.ctx.state
    history = state.message_history
    if history and isinstance(history[-1], ModelResponse) and history.pop().parts:
        state.usage.requests -= 1
    request = node.request
    if history and isinstance(history[-1], ModelRequest):
        last = history.pop()  # not always the node's own: what was enqueued meanwhile went into a copy
        assert isinstance(last, ModelRequest)  # noqa: S101 - just looked at
        request = last
    return replace(node, request=request)


def restartable(node: ModelRequestNode[Any, Any]) -> bool:
    """Whether the request is one that we can make again: not one that continues a response of an earlier run."""
    return node._resume_suspended is None


def only_text(response: ModelResponse) -> ModelResponse | None:
    """What was said in a response that was discarded, as an interrupted one; None if nothing was."""
    said = [part for part in response.parts if isinstance(part, TextPart) and part.content]
    return replace(response, parts=said, state="interrupted") if said else None


def with_discarded(messages: list[ModelMessage], discarded: ModelResponse | None) -> list[ModelMessage]:
    """`messages` with the answer that was discarded last, where nothing was said since: the reader saw it."""
    if discarded is None or not messages:
        return messages
    last = messages[-1]
    kept = messages[:-1] if isinstance(last, ModelResponse) else messages
    return [*kept, discarded]
