"""MCP servers of pydantic-ai agents under our promises: they start in time, are reached again, and leave nothing.

pydantic-ai sends the protocol's `notifications/cancelled` when a call is cancelled, and holds one connection for all
runs of a worker. What it does not do, and what is done here:

- a server that does not start ends the run with a cause after `mcp_start_s`, instead of holding it to its deadline;
- a server that died, or that answers nobody since a call to it was given up, is started anew before the next call,
  so that one broken call does not break all that follow;
- a server over stdio runs behind a relay (`holdfast.tools.relay`), which bounds what it writes and ends it, with what
  it started, when the worker ends it or dies;
- what a server over HTTP answers is bounded by hooks of its client (`mcp_http`).

Whether a connection still lives is asked by a ping, and only after something went wrong with it, or at a run's start.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic_ai import RunContext, ToolFailed
from pydantic_ai.toolsets import AbstractToolset, DynamicToolset, WrapperToolset
from pydantic_ai.toolsets.abstract import ToolsetTool

import holdfast.tools
from holdfast.agents.mcp_http import bound_messages
from holdfast.agents.results import words
from holdfast.config import Settings
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason

RELAY: Final = Path(holdfast.tools.__file__).with_name("relay.py")
PING_S: Final = 2.0
_KEPT: Final = "_holdfast_connection"


class McpLimits(NamedTuple):
    """What bounds an MCP server: to start it, and one of its messages."""

    start_s: float
    message_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> McpLimits:
        """Those of a deployment."""
        return cls(settings.mcp_start_s, settings.mcp_message_bytes)


def guarded(toolset: AbstractToolset[Any], limits: McpLimits) -> AbstractToolset[Any] | None:
    """`toolset` with a guard around each MCP server in it; None if it has none and makes none."""
    leaves: list[AbstractToolset[Any]] = []
    toolset.apply(leaves.append)
    if not any(_is_server(leaf) or isinstance(leaf, DynamicToolset) for leaf in leaves):
        return None

    def guard(leaf: AbstractToolset[Any]) -> AbstractToolset[Any]:
        if isinstance(leaf, DynamicToolset):
            return _guarded_when_made(leaf, guard)
        if not _is_server(leaf):
            return leaf
        transport = _transport(vars(leaf)["client"].transport)
        _relay(transport, limits.message_bytes)
        bound_messages(transport, limits.message_bytes)
        return McpGuard(leaf, limits)

    return toolset.visit_and_replace(guard)


def _is_server(leaf: AbstractToolset[Any]) -> bool:
    module = sys.modules.get("pydantic_ai.mcp")  # nobody has a server who did not import it
    return module is not None and isinstance(leaf, module.MCPToolset)


def _guarded_when_made(
    made_later: DynamicToolset[Any], guard: Callable[[AbstractToolset[Any]], AbstractToolset[Any]]
) -> DynamicToolset[Any]:
    """The same function's toolset, guarded; the same object again for the same object, or it is entered anew."""
    last: list[tuple[AbstractToolset[Any], AbstractToolset[Any]]] = []

    async def make(ctx: RunContext[Any]) -> AbstractToolset[Any] | None:
        made = made_later.toolset_func(ctx)
        if inspect.isawaitable(made):
            made = await made
        if made is None:
            return None
        if not last or last[0][0] is not made:
            last[:] = [(made, made.visit_and_replace(guard))]
        return last[0][1]

    return DynamicToolset(make, per_run_step=made_later.per_run_step, id=made_later.id)


@dataclass
class _Connection:
    """What the runs of a worker share of one server."""

    client: Any
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    suspect: bool = False  # something went wrong since the last ping that was answered
    calls: int = 0  # under way


@dataclass
class McpGuard(WrapperToolset[Any]):
    """One MCP server in one run."""

    limits: McpLimits

    async def __aenter__(self) -> McpGuard:
        """Connect, in bounded time.

        Raises:
            RunEnded: The server did not start, or does not answer.
        """
        try:
            async with asyncio.timeout(self.limits.start_s):
                await self.wrapped.__aenter__()
        except Exception as error:
            raise self._unavailable(error) from error
        if not self._connection.calls:
            self._connection.suspect = True  # it may have died while no run used it
        try:
            await self._ready()
        except (asyncio.CancelledError, Exception):
            await self.wrapped.__aexit__(None, None, None)
            raise
        return self

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The server's tools; a server that cannot say them is reached again, once."""
        await self._ready()
        try:
            return await self._tools(ctx)
        except Exception:  # noqa: BLE001 - asked once more, and that answer counts
            self._connection.suspect = True
        await self._ready()
        try:
            return await self._tools(ctx)
        except Exception as error:
            self._connection.suspect = True
            raise self._unavailable(error) from error

    async def _tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        async with asyncio.timeout(self.limits.start_s):
            return await self.wrapped.get_tools(ctx)

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """One call, to a server that lives; its failure makes the next call look first."""
        connection = self._connection
        try:
            await self._ready()
        except RunEnded as error:
            raise ToolFailed(error.message) from error
        connection.calls += 1
        try:
            return await self.wrapped.call_tool(name, tool_args, ctx, tool)
        except (asyncio.CancelledError, Exception):
            connection.suspect = True
            raise
        finally:
            connection.calls -= 1

    @property
    def _connection(self) -> _Connection:
        kept: _Connection | None = vars(self.wrapped).get(_KEPT)
        if kept is None or kept.client is not self._client:  # a run's own copy of the toolset has its own client
            kept = vars(self.wrapped)[_KEPT] = _Connection(self._client)
        return kept

    async def _ready(self) -> None:
        """Return when the server lives, which may mean to start it anew."""
        connection = self._connection
        if not connection.suspect:
            return
        async with connection.lock:  # bounded: whoever holds it pings and reconnects, each with a limit
            if not self._connection.suspect:
                return
            alive = await self._alive()
            if alive is None and connection.calls:
                return  # it is deaf, maybe because it works for somebody: this call has its own limit
            if not alive:
                await self._reconnect()
            connection.suspect = False

    async def _alive(self) -> bool | None:
        """Whether it answers; None if it does not say anything."""
        try:
            async with asyncio.timeout(PING_S):
                await self._client.ping()
        except TimeoutError:
            return None
        except Exception:  # noqa: BLE001 - whatever it is, the connection is no more, and what follows says why
            return False
        return True

    async def _reconnect(self) -> None:
        client = self._client
        try:
            async with asyncio.timeout(self.limits.start_s):
                await client.close()
                await client.__aenter__()
        except Exception as error:
            raise self._unavailable(error) from error

    @property
    def _client(self) -> Any:
        return self.wrapped.client  # type: ignore[attr-defined] # an MCPToolset, which may not be installed

    def _unavailable(self, error: Exception) -> RunEnded:
        said = f"did not answer in {self.limits.start_s:g} s" if isinstance(error, TimeoutError) else words(error)
        return RunEnded(
            Reason.AGENT_ERROR,
            "mcp_unavailable",
            f"the MCP server {self.wrapped.label} is not available: {said}",
            cause=type(error).__name__,
            retryable=True,
            remedy="run its command by hand, or look at its address; raise mcp_start_s if it is slow on purpose",
        )


def _transport(transport: Any) -> Any:
    """The transport itself, out of a configuration with one server."""
    inner = getattr(transport, "transport", None)
    return inner if inner is not None else transport


def _relay(transport: Any, message_bytes: int) -> None:
    """Let a server over stdio be started behind the relay."""
    command, args = getattr(transport, "command", None), getattr(transport, "args", None)
    if not isinstance(command, str) or not isinstance(args, list) or str(RELAY) in args:
        return
    transport.command = sys.executable
    transport.args = ["-I", "-S", str(RELAY), str(message_bytes), command, *args]
