"""The worker on a thread and loop of its own, inside the gateway's process (`--in-process`)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import uvloop

from holdfast.aio import settle
from holdfast.engine.worker import Worker
from holdfast.telemetry import Log

_START_S: Final = 10.0
_END_S: Final = 5.0


class WorkerThread:
    """Starts a worker on its own loop, and speaks to it from another."""

    def __init__(self, worker: Worker, log: Log, at_end: Callable[[], Awaitable[None]]) -> None:
        """Take the worker; `at_end` runs on its loop after it has ended, to close what lives there."""
        self.worker = worker
        self._log = log
        self._at_end = at_end
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        # A daemon: user code that blocks the loop for good must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="holdfast-worker", daemon=True)

    def start(self) -> None:
        """Begin; returns when the loop runs."""
        self._thread.start()
        self._started.wait(_START_S)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    async def close(self, drain_s: float) -> None:
        """Drain, release, end: bounded, also when the loop is blocked."""
        settings_bound = drain_s + 10.0
        await self.ask(self.worker.close(drain_s), settings_bound)
        loop = asyncio.get_running_loop()
        until = loop.time() + _END_S
        while self.alive and loop.time() < until:  # noqa: ASYNC110 - a thread ends, no event says so
            await asyncio.sleep(0.01)
        if self.alive:
            self._log.write("worker_thread_stuck", worker=self.worker.name)

    async def ask(self, work: Coroutine[Any, Any, Any], limit_s: float) -> bool:
        """Carry out `work` on the worker's loop; whether it was done within `limit_s` seconds."""
        if self._loop is None or not self.alive:
            work.close()
            return False
        answer = asyncio.ensure_future(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop)))
        done, _ = await asyncio.wait([answer], timeout=limit_s)
        return bool(done)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the thread's last word; readiness sees that it is gone
            self._log.write("worker_thread_died", worker=self.worker.name, error=repr(error))
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        try:
            await self.worker.run()
        finally:
            closing = asyncio.ensure_future(self._at_end())
            await settle([closing], 1.0)
