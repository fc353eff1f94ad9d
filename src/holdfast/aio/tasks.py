"""Owned tasks: every background task has an owner that holds it, sees its exception and ends it in bounded time.

A bare `asyncio.create_task` may be collected while it runs, and its exception is seen by nobody; that is how two
of the five systems died in silence. This is the only module that calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from holdfast.aio.waits import settle

T = TypeVar("T")

OnError = Callable[[str, BaseException], None]


class Owner:
    """Holds tasks until they end; an exception goes to `on_error` with the task's name, at once."""

    def __init__(self, on_error: OnError) -> None:
        """Take the one place that hears of every failure."""
        self._on_error = on_error
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many tasks are alive."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start `work` as a task on the running loop and keep it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self, grace_s: float) -> list[str]:
        """Cancel all tasks and wait at most `grace_s` seconds; the names of those that did not end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await settle(tasks, grace_s)
        return [task.get_name() for task in tasks if not task.done()]

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._on_error(task.get_name(), error)
