"""Tools that the client runs itself: the model is offered them, and a call of one ends the run.

The results come with the client's next request, as history of another run. So nothing waits for a client, and one that
never comes back leaves nothing behind. What the same step asked of the agent's own tools has ended by then; a call that
awaits an approval is closed as interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai import DeferredToolRequests, ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ExternalToolset

from holdfast.domain.messages import ClientTool


class HandedOver(Exception):
    """The step has calls that the client answers."""

    def __init__(self, calls: tuple[str, ...]) -> None:
        """Name the calls."""
        super().__init__(f"handed over: {', '.join(calls)}")
        self.calls = calls


def external(tools: Sequence[ClientTool]) -> list[AbstractToolset[Any]] | None:
    """The client's tools as a toolset; None where it has none."""
    if not tools:
        return None
    found = [
        ToolDefinition(
            name=tool.name,
            description=tool.description or None,
            parameters_json_schema=tool.parameters or {"type": "object", "properties": {}},
            strict=tool.strict,
        )
        for tool in tools
    ]
    return [ExternalToolset(found, id="client")]


def handed(deferred: DeferredToolRequests, tools: Sequence[ClientTool]) -> tuple[str, ...]:
    """The deferred calls that are the client's to answer."""
    names = {tool.name for tool in tools}
    return tuple(part.tool_call_id for part in deferred.calls if part.tool_name in names)
