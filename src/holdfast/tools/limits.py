"""How many processes tools may have at once, and how long one of them may take to end: one set for each worker.

Found through a context variable, like the probe, so that a tool deep inside an agent is bounded by the settings of the
worker that runs it. Outside a worker the defaults hold, and nothing but the machine bounds the number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar
from typing import Final

from holdfast.config import Settings
from holdfast.tools.pool import ToolQueueTimeout

WAITING_MAX: Final = 1000  # calls that wait for a place


class ProcessLimits:
    """The places for tools' processes of one worker, whose loop it belongs to, and their times."""

    def __init__(self, settings: Settings, places: int | None = None) -> None:
        """Take the settings; `places` in place of tool_processes."""
        # From SIGTERM to SIGKILL. Half of the run's grace at most; the other half is for seeing that all are dead, so
        # that the receipt says what is so.
        self.kill_s = min(settings.tool_kill_s, settings.stop_grace_s / 2)
        self.output_bytes = settings.tool_output_bytes
        self._places = settings.tool_processes if places is None else places
        self._queue_s = settings.tool_queue_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def queued(self) -> int:
        """How many calls wait for a place."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            ToolQueueTimeout: None was free in time, so the process was not started.
        """
        if self.running < self._places and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= WAITING_MAX:
            raise self._refusal("the queue is full")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait([turn], timeout=self._queue_s)
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        if not turn.done():
            self._give_up(turn)
            raise self._refusal(f"waited {self._queue_s:g} s")

    def leave(self) -> None:
        """The process and all that it started are gone: the place goes to whoever waits longest."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.running -= 1

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.leave()  # it had just become ours
        else:
            self._waiting.remove(turn)

    def _refusal(self, why: str) -> ToolQueueTimeout:
        return ToolQueueTimeout(
            f"no place was free for this tool's process ({why}; {self.running} run); the tool was not started"
        )


_current: ContextVar[ProcessLimits | None] = ContextVar("holdfast_process_limits", default=None)


def process_limits() -> ProcessLimits:
    """The limits of the worker that this code works in; outside one, the defaults without a bound on the number."""
    return _current.get() or ProcessLimits(Settings.model_validate({}), places=1_000_000)


def enter_limits(limits: ProcessLimits) -> None:
    """Make `limits` hold for this task and what it starts."""
    _current.set(limits)
