"""Runs an agent's tools so that none of them can hurt its run.

A tool that raises, hangs, is unknown, gets bad arguments or gives too much is a result for the model to read, not the
end of the run. A tool that has finished in an earlier attempt is not run again: its result is taken from the
checkpoint. One that was in flight when that attempt died is run again only if it says that this does no harm:

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
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

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
from pydantic_ai.messages import ModelResponse, ToolCallPart, ToolReturn, ToolReturnPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.output import OutputContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDenied
from pydantic_ai.toolsets import AbstractToolset

from holdfast.agents.channel import Channel
from holdfast.agents.checkpoint import Finished
from holdfast.agents.deciding import APPROVAL
from holdfast.agents.delegation import call_ended
from holdfast.agents.elsewhere import as_raised
from holdfast.agents.mcp import McpLimits, guarded
from holdfast.agents.mistakes import mistake
from holdfast.agents.overflow import CompactingModel, Compactor
from holdfast.agents.results import cut, cut_part, sendable, words
from holdfast.aio import Owner, settle
from holdfast.config import Settings
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.models import GuardedModel, ModelGuard, is_guarded
from holdfast.ports.agent import AgentEvent
from holdfast.ports.agent import RunContext as HoldfastContext
from holdfast.tools import CurrentCall, Reporter, ToolQueueTimeout, current_call, in_call, reporting

IDEMPOTENT: Final = "idempotent"
_TIMED_OUT: Final = "Timed out after "  # how pydantic-ai's own timeout of a tool begins
_NOT_RUN: Final = "Tool not executed"  # how its result of a call that an answer overtook begins
_PASSES: Final = (RunCancelled, RunEnded, SkipToolExecution)
_Caught = tuple[BaseException | None, Any]
_log = logging.getLogger("holdfast.tools")


class ToolLimits(NamedTuple):
    """What bounds the tool calls of a run.

    Attributes:
        timeout_s: One call, for a tool that names no limit of its own.
        grace_s: How long a cancelled tool may take to end before it is abandoned.
        parallel: How many calls work at once.
        result_bytes: How much of a result is sent on.
        progress_bytes: How much one call may say while it works.
    """

    timeout_s: float
    grace_s: float
    parallel: int
    result_bytes: int
    progress_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> ToolLimits:
        """Those of a deployment."""
        return cls(
            settings.tool_timeout_s,
            settings.stop_grace_s,
            settings.tool_parallel,
            settings.tool_result_bytes,
            settings.tool_progress_bytes,
        )


class ToolRunner:
    """The tool calls of one run's attempt."""

    def __init__(self, ctx: HoldfastContext, limits: ToolLimits, owner: Owner, channel: Channel[AgentEvent]) -> None:
        """Hold the limits.

        Args:
            ctx: The run.
            limits: Of its calls.
            owner: Of the tools' tasks.
            channel: Where what they say goes.
        """
        self._ctx = ctx
        self._limits = limits
        self._owner = owner
        self._channel = channel
        self._slots = asyncio.Semaphore(limits.parallel)
        self._started: dict[str, float] = {}
        self.finished: dict[str, Finished] = {}  # by an earlier attempt
        self.in_flight: frozenset[str] = frozenset()  # when that attempt died
        self.asked: dict[str, str] = {}  # call -> kind; an earlier attempt asked whether to run it, and it has not run
        self.outcomes: dict[str, str] = {}  # where pydantic-ai has no word for it
        self.notes: dict[str, str] = {}  # call -> what the model is told beside its result
        self.seen: set[str] = set()  # the calls that came here

    def duration_ms(self, call: str) -> int:
        """Since the call's own code began; 0 if it never did."""
        began = self._started.get(call)
        return 0 if began is None else int((time.monotonic() - began) * 1000)

    def outcome(self, part: ToolReturnPart) -> str:
        """The log's word for how a call ended."""
        call = part.tool_call_id
        said = self.outcomes.get(call, part.outcome)
        if said == "success" and call not in self.seen and str(part.content).startswith(_NOT_RUN):
            return "interrupted"
        return "failed" if said == "retried" else said

    async def run(
        self,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        work: Callable[[], Awaitable[Any]],
        *,
        approved: bool = False,
    ) -> Any:
        """The result of one call; what goes wrong with the tool is a `ToolFailed`."""
        name = call.tool_call_id
        self.seen.add(name)
        if name in self.finished:
            return _replayed(self.finished[name])
        if name in self.asked and not approved:
            raise ApprovalRequired if self.asked[name] == APPROVAL else CallDeferred
        if name in self.in_flight and not (tool_def.metadata or {}).get(IDEMPOTENT):
            self.outcomes[name] = "unknown"
            raise ToolFailed(
                "the outcome of this call is unknown: the worker that ran it died before the result was stored; "
                "it may or may not have taken effect, so check before you call it again"
            )
        limit_s = tool_def.timeout if tool_def.timeout is not None else self._limits.timeout_s
        note = self.notes.get(name, "")
        try:
            async with self._slot():
                result = sendable(await self._bounded(call, work, limit_s), self._limits.result_bytes)
            return _noted(result, note)
        except ToolFailedError as error:
            raise ToolFailedError(_noted_part(error.tool_failed, note)) from error
        except ToolRetryError as error:
            if _is_timeout(error.__cause__):
                raise self._timed_out(name, limit_s, note) from error
            part = error.tool_retry
            raise ToolRetryError(_noted_part(part, note) if isinstance(part, ToolReturnPart) else part) from error
        except (ApprovalRequired, CallDeferred) as error:
            if approved:
                raise ToolFailed(f"the tool was approved, and asked again with {type(error).__name__}{note}") from error
            raise
        except _PASSES:
            raise
        except (ToolFailed, ModelRetry) as error:
            error.message = cut(error.message) + note
            raise
        except UnexpectedModelBehavior as error:
            if _is_timeout(error.__cause__):
                raise self._timed_out(name, limit_s, note) from error
            if isinstance(error.__cause__, ModelRetry):  # the tool may be asked again no more: a failure like others
                raise ToolFailed(mistake(error) + note) from error
            raise _failed(call, error, note) from error
        except ToolQueueTimeout as error:
            self.outcomes[name] = "timeout"
            raise ToolFailed(str(error) + note) from error
        except Exception as error:
            raise _failed(call, error, note) from error

    async def answer(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """What an output function makes of the answer, in the time of a tool.

        Raises:
            RunEnded: It did not end in time. It is not the model's to correct, and may have taken effect.
        """
        limit_s = self._limits.timeout_s
        self._ctx.probe.waits("output function", fires="tool_timeout", fires_in_s=limit_s)
        task = self._owner.spawn(_caught(work), f"output function {name}")
        if await self._settled(task, limit_s) or task.cancelled():
            raise RunEnded(
                Reason.TOOL_ERROR,
                "output_function_timeout",
                f"the output function {name} did not finish within {limit_s:g} s and was cancelled",
                remedy="raise tool_timeout_s if it is slow on purpose",
            )
        return _outcome(task)

    def _slot(self) -> AbstractAsyncContextManager[None]:
        """A place among the calls that work at once; a call that a tool makes itself has its maker's."""
        maker = current_call()
        if maker is not None and maker.run == self._ctx.key.run:
            return nullcontext()
        return self._slots  # bounded: each call before it ends within its own limit and the grace

    async def _bounded(self, call: ToolCallPart, work: Callable[[], Awaitable[Any]], limit_s: float) -> Any:
        """In a task of its own, so that a tool that ignores its cancellation is abandoned, not waited for."""
        name = call.tool_call_id
        self._ctx.probe.waits("tool", fires="tool_timeout", fires_in_s=limit_s)
        reporter = Reporter(name, self._limits.progress_bytes, self._channel.offer)
        with in_call(CurrentCall(self._ctx.key.run, name, self._ctx.epoch)), reporting(reporter):
            task = self._owner.spawn(self._perform(call, work), f"tool {call.tool_name} {name}")
        try:
            late = await self._settled(task, limit_s)
        except asyncio.CancelledError:
            if (said := reporter.close()) is not None:
                self._channel.offer(said)
            raise
        if (said := reporter.close()) is not None:
            await self._channel.send(said)
        if late:
            raise self._timed_out(name, limit_s, "")
        if task.cancelled():
            raise ToolFailed("the tool was cancelled from within")
        return _outcome(task)

    async def _settled(self, task: asyncio.Task[Any], limit_s: float) -> bool:
        """Wait for a task within its limit, and end it at that limit, or with the run; whether it was late."""
        try:
            late = await settle({task}, limit_s)
            if late:
                task.cancel()
                await settle({task}, self._limits.grace_s)
        except asyncio.CancelledError:
            task.cancel()
            while not task.done():  # its end is the run's end: whether to wait that long is the executor's to say
                await settle({task}, self._limits.grace_s)
            raise
        return bool(late)

    async def _perform(self, call: ToolCallPart, work: Callable[[], Awaitable[Any]]) -> _Caught:
        name = call.tool_call_id
        self._started[name] = time.monotonic()
        self._ctx.probe.tool_started(name, call.tool_name)
        try:
            return await _caught(work)
        finally:
            self._ctx.probe.tool_ended(name)
            call_ended(name)

    def _timed_out(self, name: str, limit_s: float, note: str) -> ToolFailed:
        self.outcomes[name] = "timeout"
        return ToolFailed(f"the tool did not finish within {limit_s:g} s and was cancelled{note}")


@dataclass
class Hooks(AbstractCapability[Any]):
    """Our place in pydantic-ai's loop: around each request and each tool."""

    tools: ToolRunner
    guard: ModelGuard
    mcp: McpLimits
    decide: Callable[[DeferredToolRequests], Awaitable[DeferredToolResults]]
    replay: ModelResponse | None = None
    compactor: Compactor = field(default_factory=Compactor)

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any] | None:
        """Put a guard around each MCP server."""
        return guarded(toolset, self.mcp)

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Guard whichever model serves the request: the agent's own, --model, a fallback, a test's override."""
        if is_guarded(model):
            return None
        return CompactingModel(GuardedModel(model, self.guard.limits, self.guard), self.compactor)

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
        return await self.tools.run(call, tool_def, lambda: handler(args), approved=ctx.tool_call_approved)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults:
        """What was decided about these calls; where nothing was, the run is parked and this never returns."""
        return await self.decide(requests)

    async def wrap_output_process(
        self,
        ctx: RunContext[Any],
        *,
        output_context: OutputContext,
        output: Any,
        handler: Callable[[Any], Awaitable[Any]],
    ) -> Any:
        """Run the agent's output function under the same limit as a tool."""
        if not output_context.has_function or ctx.partial_output:
            return await handler(output)
        return await self.tools.answer(output_context.function_name or "", lambda: handler(output))


async def _caught(work: Callable[[], Awaitable[Any]]) -> _Caught:
    """What a user's function gave, or raised: nothing of it may end the loop that it shares with every other run."""
    try:
        return None, await work()
    except (SystemExit, KeyboardInterrupt) as error:
        said = f"called exit({error.code})" if isinstance(error, SystemExit) else "raised KeyboardInterrupt"
        return RuntimeError(f"the tool {said}"), None
    except Exception as error:  # noqa: BLE001 - handed to the caller, which sorts it
        return as_raised(error), None


def _outcome(task: asyncio.Task[_Caught]) -> Any:
    odd = task.exception()
    if odd is not None:  # no Exception, such as a group with a KeyboardInterrupt in it: nobody above expects one
        raise RuntimeError(words(odd)) from odd
    error, value = task.result()
    if error is not None:
        raise error
    return value


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


def _failed(call: ToolCallPart, error: Exception, note: str) -> ToolFailed:
    where = "".join(traceback.format_exception(error, limit=-3))  # the tool's own frames, not the library's twenty
    _log.warning("tool_failed call=%s tool=%s\n%s", call.tool_call_id, call.tool_name, where.rstrip())
    return ToolFailed(words(error) + note)


def _is_timeout(cause: BaseException | None) -> bool:
    """Whether the library's own limit of a tool fired, which it takes for a mistake of the model."""
    return isinstance(cause, ModelRetry) and cause.message.startswith(_TIMED_OUT)


def _noted(result: Any, note: str) -> Any:
    """The result with a word to the model beside it."""
    if not note:
        return result
    if isinstance(result, ToolDenied):
        return ToolDenied(result.message + note)
    value = result.return_value if isinstance(result, ToolReturn) else result
    value = value + note if isinstance(value, str) else {"result": value, "note": note.strip()}
    if isinstance(result, ToolReturn):
        return replace(result, return_value=value)
    return value


def _noted_part(part: ToolReturnPart, note: str) -> ToolReturnPart:
    """What the library made of a failure, bounded, with a word to the model."""
    cut_part(part)
    if isinstance(part.content, str):
        part.content += note
    return part
