"""Tools in a process of their own: what blocks, crashes or forks there can always be killed.

    from holdfast.tools import isolated

    @isolated
    def render(page: str) -> str: ...

    agent = Agent(tools=[render])

The function runs in a fresh Python, started for this call, in a session of its own. Its arguments and its result
travel as JSON; what it prints is shown as the call's progress; an exception comes back with its type, its message and
its trace. When the call is stopped or out of time, or the worker dies, the process and all that it started are ended.

This module is imported in those processes, too: it must stay light, so the rest is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

_COROUTINE = 0x80  # inspect.CO_COROUTINE


class ToolRaised(Exception):
    """An isolated tool raised. Its class is named as what was raised there; `kind`, `message` and `trace` say more."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        """Take the full name of the type, the message and the trace as text."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.trace = trace
        self.add_note(f"in the tool's own process:\n{trace}")


class ToolDied(Exception):
    """An isolated tool's process ended before it had an answer; `code` is its exit code or minus a signal."""

    def __init__(self, message: str, code: int | None) -> None:
        """Take what happened."""
        super().__init__(message)
        self.code = code


@overload
def isolated(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]: ...
@overload
def isolated(function: Callable[P, T]) -> Callable[P, Awaitable[T]]: ...
def isolated(function: Callable[P, Any]) -> Callable[P, Awaitable[Any]]:
    """Make a sync or async function run in a process of its own, which can be killed.

    Args:
        function: At the top level of a module that can be imported, or a static method there, for the other process
            looks it up by its name. Keep it in a module that imports little: each call imports that module anew.

    Returns:
        A coroutine function with the same arguments.

    Raises:
        TypeError: It is no function of that kind.
    """
    if not isinstance(function, FunctionType):
        raise TypeError(f"@isolated takes a function, not a {type(function).__name__}")
    if "<" in function.__qualname__:
        raise TypeError(
            f"@isolated cannot find {function.__qualname__} from another process; move it to the top level of a module"
        )

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> Any:
        from holdfast.tools.calling import call_isolated

        return await call_isolated(function, bool(function.__code__.co_flags & _COROUTINE), args, kwargs)

    run.__holdfast_isolated__ = function  # type: ignore[attr-defined]
    return run
