"""What agents' tools run in: a bounded pool of threads, processes that can be killed, and the call that is at hand.

Each name is imported when it is first asked for: an isolated tool's process imports this package at every call, and
needs no more of it than its decorator. So no module here has the name of what it holds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.tools.calls import CurrentCall, current_call, in_call
    from holdfast.tools.commands import CommandResult, CommandTimeout, command
    from holdfast.tools.isolation import ToolDied, ToolRaised, isolated
    from holdfast.tools.limits import ProcessLimits, enter_limits, process_limits
    from holdfast.tools.pool import ToolPool, ToolQueueTimeout
    from holdfast.tools.reports import Reporter, progress, reporting

__all__ = [
    "CommandResult",
    "CommandTimeout",
    "CurrentCall",
    "ProcessLimits",
    "Reporter",
    "ToolDied",
    "ToolPool",
    "ToolQueueTimeout",
    "ToolRaised",
    "command",
    "current_call",
    "enter_limits",
    "in_call",
    "isolated",
    "process_limits",
    "progress",
    "reporting",
]

_HOME = {
    "CommandResult": "commands",
    "CommandTimeout": "commands",
    "CurrentCall": "calls",
    "ProcessLimits": "limits",
    "Reporter": "reports",
    "ToolDied": "isolation",
    "ToolPool": "pool",
    "ToolQueueTimeout": "pool",
    "ToolRaised": "isolation",
    "command": "commands",
    "current_call": "calls",
    "enter_limits": "limits",
    "in_call": "calls",
    "isolated": "isolation",
    "process_limits": "limits",
    "progress": "reports",
    "reporting": "reports",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
