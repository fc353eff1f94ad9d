"""Agents that a run's own code calls: a pydantic-ai agent in a tool, with whatever model of its own.

Its model requests stand under the same promises as the run's: the guard with its limits, retries, breaker and fallback;
the run's budget and the worker's lease before each, and its usage counted after it. Its MCP servers are guarded, too.
What it says is the tool's own matter: the log has `tool.responded` for each of its responses, and no text.

How it is reached: `Agent.iter`, which every way to start an agent comes down to, is extended once. Within a run, and
only there, it adds a capability; an agent outside a run of ours sees nothing of this. There is no hook of the library's
that reaches an agent which nobody has handed to us.

A synchronous tool may have a loop of its own in its thread (`asyncio.run`). Cancellation does not reach it there, so
the requests that are open on such a loop are kept by their call, and time out when the call ends.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from pydantic_ai import Agent, AgentRun
from pydantic_ai import RunContext as LibraryContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import AbstractToolset

from holdfast.agents.channel import Channel
from holdfast.agents.mcp import McpLimits, guarded
from holdfast.models import GuardedModel, ModelGuard, RequestScope, in_scope, is_guarded
from holdfast.ports.agent import AgentEvent, Degraded, ModelRetried, ToolAsks, ToolResponded
from holdfast.ports.probe import current_probe
from holdfast.tools import current_call

_OPEN_MAX: Final = 64  # requests on loops of their own that one call may have open and be cancelled with


class Delegation:
    """What the agents that one attempt of a run calls share with it."""

    def __init__(self, guard: ModelGuard, mcp: McpLimits, channel: Channel[AgentEvent], deadline: float) -> None:
        """Belong to the run whose loop this is.

        Args:
            guard: The run's.
            mcp: Limits of MCP servers.
            channel: Where the run's events go.
            deadline: The run's, on this loop's clock.
        """
        self.guard = guard
        self.mcp = mcp
        self._channel = channel
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._elsewhere: dict[str, dict[asyncio.Timeout, asyncio.AbstractEventLoop]] = {}

    async def may_ask(self, call: str, model: str) -> None:
        """Return when the run's budget and its worker's lease allow one more request; else the run ends."""
        await self._here(self._ask(call, model))

    async def tell(self, event: AgentEvent) -> None:
        """Pass an event on, from whichever loop."""
        await self._here(self._channel.send(event))

    def scope(self, call: str) -> RequestScope:
        """What the guard is told through: retries and fallbacks are said of the call, whose steps are not the run's."""

        async def tell(event: AgentEvent) -> None:
            if isinstance(event, ModelRetried):
                said = f"call {call or 'of the answer'}: its model is asked again ({event.reason})"
                await self.tell(Degraded("delegated_model", said))
            elif isinstance(event, Degraded):
                await self.tell(event)

        left_s = self._deadline - self._loop.time()
        return RequestScope(tell, asyncio.get_running_loop().time() + left_s)

    @asynccontextmanager
    async def open(self, call: str) -> AsyncGenerator[None]:
        """A request is open within the block; on a loop of its own it ends with its call, in a TimeoutError."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            yield
            return
        held = self._elsewhere.setdefault(call, {})
        async with asyncio.timeout(None) as timer:
            if len(held) < _OPEN_MAX:
                held[timer] = loop
            try:
                yield
            finally:
                held.pop(timer, None)

    def end(self, call: str | None = None) -> None:
        """End what is open on other loops: of one call, or of the whole run."""
        for name in [call] if call is not None else list(self._elsewhere):
            held = self._elsewhere.pop(name, {})
            for timer, loop in list(held.items()):
                with suppress(RuntimeError):  # the loop has ended, and the request with it
                    loop.call_soon_threadsafe(_expire, timer, held)

    async def _ask(self, call: str, model: str) -> None:
        await self._channel.send(ToolAsks(call, model))
        await self._channel.settle()

    async def _here(self, work: Coroutine[Any, Any, None]) -> None:
        """`work` on the run's loop, awaited from any."""
        if asyncio.get_running_loop() is self._loop:
            await work
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class DelegatedModel(GuardedModel):
    """The guarded model of an agent that a call of the run has started."""

    def __init__(self, wrapped: Model, delegation: Delegation, call: str) -> None:
        """Guard `wrapped` for this call; "" stands for the run's own code outside its tools."""
        super().__init__(wrapped, delegation.guard.limits, delegation.guard)
        self._delegation = delegation
        self._call = call

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: LibraryContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Ask when the run may, and count what came."""
        delegation, call = self._delegation, self._call
        await delegation.may_ask(call, self.model_name)
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(delegation.open(call))
            stack.enter_context(_waiting_as_before())
            asked = super().request_stream(messages, model_settings, model_request_parameters, run_context)
            with in_scope(delegation.scope(call)):  # retries are told of until the first content, and not after it
                stream = await stack.enter_async_context(asked)
            yield stream
            await delegation.tell(_responded(call, stream.get(), self.model_name, began))


class Delegated(AbstractCapability[Any]):
    """Our place in the loop of an agent that a run's code has called."""

    def __init__(self, delegation: Delegation) -> None:
        """Belong to the run."""
        self._delegation = delegation

    def get_wrapper_model(self, model: Model) -> Model | None:
        """Guard whichever model serves the request."""
        if is_guarded(model):
            return None
        call = current_call()
        return DelegatedModel(model, self._delegation, call.call if call is not None else "")

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any] | None:
        """Put a guard around each MCP server."""
        return guarded(toolset, self._delegation.mcp)


_current: ContextVar[Delegation | None] = ContextVar("holdfast_delegation", default=None)


@contextmanager
def delegating(delegation: Delegation) -> Iterator[None]:
    """Agents that are started within the block, by whatever code, work for this run."""
    token = _current.set(delegation)
    try:
        yield
    finally:
        _current.reset(token)
        delegation.end()


def call_ended(call: str) -> None:
    """The call is over, however it ended: nothing that it asked of a model goes on."""
    delegation = _current.get()
    if delegation is not None:
        delegation.end(call)


def _expire(timer: asyncio.Timeout, held: dict[asyncio.Timeout, asyncio.AbstractEventLoop]) -> None:
    """On the request's own loop: end it, if it is still open."""
    if timer in held:
        timer.reschedule(0.0)


@contextmanager
def _waiting_as_before() -> Iterator[None]:
    """After the block the run waits on what it waited on before it: the tool, with the tool's own limit."""
    probe = current_probe()
    on, fires, fires_at = probe.waiting()
    try:
        yield
    finally:
        probe.waits(on, fires, None if fires_at is None else fires_at - time.monotonic())


def _responded(call: str, response: ModelResponse, asked: str, began: float) -> ToolResponded:
    usage = {name: value for name, value in vars(response.usage).items() if isinstance(value, int) and value}
    reason = response.finish_reason
    took_ms = int((time.monotonic() - began) * 1000)
    return ToolResponded(call, response.model_name or asked, str(reason) if reason else None, usage, took_ms)


def _extended(iterate: Any) -> Any:
    """`Agent.iter`, which guards what a run's code starts."""

    @functools.wraps(iterate)
    def iter_within_a_run(
        self: Any, *args: Any, capabilities: Any = None, **given: Any
    ) -> AbstractAsyncContextManager[AgentRun[Any, Any]]:
        delegation = _current.get()
        if delegation is not None:
            capabilities = [*(capabilities or ()), Delegated(delegation)]
        begun: AbstractAsyncContextManager[AgentRun[Any, Any]] = iterate(
            self, *args, capabilities=capabilities, **given
        )
        return begun

    return iter_within_a_run


Agent.iter = _extended(Agent.iter)  # type: ignore[method-assign] # once, when this module is imported
