"""Which call a piece of tool code works for: its idempotency key, found without passing it through every signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class CurrentCall(NamedTuple):
    """The call that this code works for.

    Attributes:
        run: The run's id.
        call: The call's id, as the run's events name it; the same in every attempt.
        epoch: Which attempt this is; differs between attempts, so it is no part of the key.
    """

    run: str
    call: str
    epoch: int

    @property
    def key(self) -> str:
        """The idempotency key: the same however often the run is resumed, different for every call."""
        return f"{self.run}/{self.call}"


_current: ContextVar[CurrentCall | None] = ContextVar("holdfast_call", default=None)


def current_call() -> CurrentCall | None:
    """The call that this code works for, or None outside a tool."""
    return _current.get()


def enter_call(call: CurrentCall) -> None:
    """Make `call` the current one from here on."""
    _current.set(call)


@contextmanager
def in_call(call: CurrentCall) -> Iterator[None]:
    """Make `call` the current one within the block, and in the threads and tasks that start there."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
