"""What a model request knows of the run it works for: the step, the deadline, and somebody to tell.

The guard sits deep inside an agent library, under the stream that the adapter iterates. What it has to say (this
request is retried in two seconds) must reach the reader while it waits, so it is told through here, at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from holdfast.ports.agent import AgentEvent

Tell = Callable[[AgentEvent], Awaitable[None]]


class RequestScope:
    """One run's attempt, as its model requests see it."""

    def __init__(self, tell: Tell, deadline: float) -> None:
        """Hold the values; `step` and `attempt` count from 1, and the adapter begins each step.

        Args:
            tell: Passes an event on to the run's reader.
            deadline: The run's, on the loop's clock.
        """
        self.tell = tell
        self.deadline = deadline
        self.step = 0
        self.attempt = 1

    def begin_step(self) -> None:
        """The next model response is asked for, for the first time."""
        self.step += 1
        self.attempt = 1


_current: ContextVar[RequestScope | None] = ContextVar("holdfast_request_scope", default=None)


def current_scope() -> RequestScope | None:
    """The scope of the run that this model request works for, or None outside a run."""
    return _current.get()


@contextmanager
def in_scope(scope: RequestScope) -> Iterator[None]:
    """Make `scope` the current one within the block."""
    token = _current.set(scope)
    try:
        yield
    finally:
        _current.reset(token)
