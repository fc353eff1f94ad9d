"""Runs an agent's tools so that none of them can hurt its run.

A tool that raises, hangs, is unknown or gets bad arguments is a result for the model to read, not the end of the run.
A tool that has finished in an earlier attempt is not run again: its result is taken from the checkpoint. One that was
in flight when that attempt died is run again only if it says that this does no harm:

    Tool(send, metadata={"idempotent": True})        # and use current_call().key as the idempotency key

else the model is told that its outcome is unknown.

Also here, because pydantic-ai takes all three from one capability: the model guard around whichever model serves a
request, and the response that a resumed attempt takes from its checkpoint instead of asking the model again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pydantic_core
from pydantic_ai import ModelRetry, RunContext, ToolDefinition, ToolFailed
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    RunCancelled,
    SkipToolExecution,
    ToolFailedError,
    ToolRetryError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelResponse, ToolCallPart, ToolReturn
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.tools import ToolDenied

from holdfast.agents.checkpoint import Finished
from holdfast.agents.elsewhere import as_raised
from holdfast.aio import Owner, settle
from holdfast.domain.errors import RunEnded
from holdfast.models import GuardedModel, ModelLimits
from holdfast.ports.agent import RunContext as HoldfastContext
from holdfast.tools import CurrentCall, ToolQueueTimeout, in_call

MESSAGE_MAX: Final = 4000
IDEMPOTENT: Final = "idempotent"
_PASSES: Final = (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunCancelled,
    RunEnded,
    SkipToolExecution,
    ToolFailed,
    ToolFailedError,
    ToolRetryError,
)
_log = logging.getLogger("holdfast.tools")


class ToolRunner:
    """The tool calls of one run's attempt."""

    def __init__(self, ctx: HoldfastContext, timeout_s: float, grace_s: float, owner: Owner) -> None:
        """Hold the limits.

        Args:
            ctx: The run.
            timeout_s: For a tool that names no limit of its own.
            grace_s: How long a cancelled tool may take to end before it is abandoned.
            owner: Of the tools' tasks.
        """
        self._ctx = ctx
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._owner = owner
        self._started: dict[str, float] = {}
        self.finished: dict[str, Finished] = {}  # by an earlier attempt
        self.in_flight: frozenset[str] = frozenset()  # when that attempt died
        self.outcomes: dict[str, str] = {}  # where pydantic-ai has no word for it

    def duration_ms(self, call: str) -> int:
        """Since the call's own code began; 0 if it never did."""
        began = self._started.get(call)
        return 0 if began is None else int((time.monotonic() - began) * 1000)

    async def run(self, call: ToolCallPart, tool_def: ToolDefinition, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of one call; what goes wrong with the tool is a `ToolFailed`."""
        name = call.tool_call_id
        if name in self.finished:
            return _replayed(self.finished[name])
        if name in self.in_flight and not (tool_def.metadata or {}).get(IDEMPOTENT):
            self.outcomes[name] = "unknown"
            raise ToolFailed(
                "the outcome of this call is unknown: the worker that ran it died before the result was stored; "
                "it may or may not have taken effect, so check before you call it again"
            )
        limit_s = tool_def.timeout if tool_def.timeout is not None else self._timeout_s
        try:
            return _sendable(await self._bounded(call, work, limit_s))
        except ModelRetry as error:
            if tool_def.timeout is None or error.message != f"Timed out after {tool_def.timeout} seconds.":
                raise
            raise self._timed_out(name, limit_s) from error
        except UnexpectedModelBehavior as error:
            if isinstance(error.__cause__, ModelRetry):
                raise  # the tool's own budget of retries is spent: the library ends the run
            raise _failed(call, error) from error
        except _PASSES:
            raise
        except ToolQueueTimeout as error:
            self.outcomes[name] = "timeout"
            raise ToolFailed(str(error)) from error
        except Exception as error:
            raise _failed(call, error) from error

    async def _bounded(self, call: ToolCallPart, work: Callable[[], Awaitable[Any]], limit_s: float) -> Any:
        """In a task of its own, so that a tool that ignores its cancellation is abandoned, not waited for."""
        name = call.tool_call_id
        self._ctx.probe.waits("tool", fires="tool_timeout", fires_in_s=limit_s)
        with in_call(CurrentCall(self._ctx.key.run, name, self._ctx.epoch)):
            task = self._owner.spawn(self._perform(call, work), f"tool {call.tool_name} {name}")
        try:
            late = await settle({task}, limit_s)
        except asyncio.CancelledError:
            task.cancel()
            while not task.done():  # its end is the run's end: whether to wait that long is the executor's to say
                await settle({task}, self._grace_s)
            raise
        if late:
            task.cancel()
            await settle({task}, self._grace_s)
            raise self._timed_out(name, limit_s)
        if task.cancelled():
            raise ToolFailed("the tool was cancelled from within")
        error, value = task.result()
        if error is not None:
            raise error
        return value

    async def _perform(
        self, call: ToolCallPart, work: Callable[[], Awaitable[Any]]
    ) -> tuple[BaseException | None, Any]:
        name = call.tool_call_id
        self._started[name] = time.monotonic()
        self._ctx.probe.tool_started(name, call.tool_name)
        try:
            return None, await work()
        except SystemExit as error:  # in a task it would end the worker's loop, and every other run with it
            return RuntimeError(f"the tool called exit({error.code})"), None
        except Exception as error:  # noqa: BLE001 - handed to the caller, which sorts it
            return as_raised(error), None
        finally:
            self._ctx.probe.tool_ended(name)

    def _timed_out(self, name: str, limit_s: float) -> ToolFailed:
        self.outcomes[name] = "timeout"
        return ToolFailed(f"the tool did not finish within {limit_s:g} s and was cancelled")


@dataclass
class Hooks(AbstractCapability[Any]):
    """Our place in pydantic-ai's loop: around each request and each tool."""

    tools: ToolRunner
    limits: ModelLimits
    replay: ModelResponse | None = None

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Guard whichever model serves the request: the agent's own, --model, a fallback, a test's override."""
        inner: Model = model
        while isinstance(inner, WrapperModel):
            if isinstance(inner, GuardedModel):
                return None
            inner = inner.wrapped
        return GuardedModel(model, self.limits)

    async def wrap_model_request(
        self,
        ctx: RunContext[Any],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        """Answer the first request of a resumed attempt from its checkpoint, all others by asking."""
        response, self.replay = self.replay, None
        return response if response is not None else await handler(request_context)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Run the tool under our limits."""
        return await self.tools.run(call, tool_def, lambda: handler(args))


def _replayed(done: Finished) -> Any:
    part = done.part
    said = part.content if isinstance(part.content, str) else part.model_response_str()
    match part.outcome:
        case "failed" | "interrupted" | "retried":
            raise ToolFailed(said)
        case "denied":
            return ToolDenied(said)
        case _:
            return ToolReturn(return_value=part.content, content=done.content, metadata=part.metadata)


def _failed(call: ToolCallPart, error: Exception) -> ToolFailed:
    where = "".join(traceback.format_exception(error, limit=-3))  # the tool's own frames, not the library's twenty
    _log.warning("tool_failed call=%s tool=%s\n%s", call.tool_call_id, call.tool_name, where.rstrip())
    return ToolFailed(f"{type(error).__name__}: {error}"[:MESSAGE_MAX])


def _sendable(result: Any) -> Any:
    """The result itself, if it can be written down; a TypeError is the tool's, not the run's, failure."""
    value = result.return_value if isinstance(result, ToolReturn) else result
    if not (value is None or isinstance(value, str | int | float | bool)):
        try:
            pydantic_core.to_json(value)
        except (pydantic_core.PydanticSerializationError, ValueError, RecursionError) as error:
            raise TypeError(f"the tool's result is a {type(value).__name__} and no JSON: {error}") from error
    return result
