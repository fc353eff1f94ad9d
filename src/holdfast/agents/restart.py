"""Asks for a model response anew after a part of it was shown and its stream broke.

Where this lives: the guard under pydantic-ai's stream cannot do it, for the stream above it has the broken parts and
their indexes; nor need the whole run begin again. A node of pydantic-ai's graph streams once, so the request becomes
a new node, and the history is what it was before the broken one. Tools, toolsets and the agent's own state stay.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

from pydantic_ai import AgentRun, ModelRequestNode
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.result import AgentStream

from holdfast.models import ModelBreakerOpen, restart_reason

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


class Restarts:
    """How often the response at hand was begun anew, and what was shown of it last.

    Attributes:
        discarded: What was said before, where nothing was said since.
    """

    def __init__(self, limit: int, deadline: float) -> None:
        """Allow `limit` for each response, before `deadline` on the loop's clock."""
        self.discarded: ModelResponse | None = None
        self._limit = limit
        self._deadline = deadline
        self._count = 0
        self._broken: ModelAPIError | None = None

    def begin(self) -> None:
        """The next response is asked for."""
        self._count, self._broken = 0, None

    def reason(
        self, error: ModelAPIError, node: ModelRequestNode[Any, Any], stream: AgentStream[Any, Any] | None
    ) -> str | None:
        """Why the response is to be asked for anew; None where the failure is the run's.

        Not before anything of it has come, where repeating it was the guard's; nor a request that continues the
        response of an earlier run.

        Raises:
            ModelAPIError: What broke the response before, where that has opened the breaker, which says less.
        """
        shown = None if stream is None else stream.response
        if shown is None or not shown.parts:
            if self._broken is not None and isinstance(error, ModelBreakerOpen):
                raise self._broken from self._broken.__cause__
            return None
        left_s = self._deadline - asyncio.get_running_loop().time()
        if self._count >= self._limit or left_s < LEFT_S or node._resume_suspended is not None:
            return None
        reason = restart_reason(error)
        if reason is not None:
            self._count += 1
            self._broken = error
            self.discarded = _only_text(shown) or self.discarded
        return reason

    def with_discarded(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        """`messages` with the answer that was discarded last, where nothing was said since: the reader saw it."""
        if self.discarded is None or not messages:
            return messages
        kept = messages[:-1] if isinstance(messages[-1], ModelResponse) else messages
        return [*kept, self.discarded]


def _only_text(response: ModelResponse) -> ModelResponse | None:
    """What was said in a response that is discarded, as an interrupted one; None if nothing was."""
    said = [part for part in response.parts if isinstance(part, TextPart) and part.content]
    return replace(response, parts=said, state="interrupted") if said else None
