"""The worker on a thread and loop of its own, inside the gateway's process (`--in-process`)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Final

import uvloop

from holdfast.agents.synthetic import SyntheticAgent
from holdfast.aio import Owner, settle
from holdfast.app.served import Served, load_served
from holdfast.config import Settings
from holdfast.domain.ids import RunKey
from holdfast.engine.blame import BlameBoard
from holdfast.engine.inspection import stack_text
from holdfast.engine.worker import Worker, worker_name
from holdfast.ports.agent import Agent, AgentInfo
from holdfast.ports.clock import SystemClock
from holdfast.ports.store import RunStore
from holdfast.telemetry import Log

_START_S: Final = 10.0
_END_S: Final = 5.0
_DRAIN_EXTRA_S: Final = 10.0
_LEFT_S: Final = 0.5
_INSPECT_S: Final = 0.5


async def _into(answers: list[Any], work: Coroutine[Any, Any, Any]) -> None:
    answers.append(await work)


class WorkerThread:
    """Loads the agents, starts a worker on its own loop, and speaks to it from another."""

    def __init__(
        self, store: RunStore, settings: Settings, specs: Sequence[object], given: Sequence[Agent], log: Log
    ) -> None:
        """Nothing is started yet; `given` agents are served as they are, else `specs` are loaded."""
        self._store = store
        self._settings = settings
        self._specs = specs
        self._given = list(given)
        self._log = log
        self._served: Served | None = None
        self._worker: Worker | None = None
        self._board: BlameBoard | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self.agents: list[AgentInfo] = []
        # A daemon: user code that blocks the loop for good must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="holdfast-worker", daemon=True)

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._worker.name if self._worker else ""

    @property
    def why(self) -> str:
        """Why no run would be worked on now, or ""."""
        if not self._thread.is_alive():
            return "the worker's thread has ended; restart the server, its log says why"
        tired = self._worker.tired() if self._worker is not None else ""
        return f"{tired}; no new runs until some of them return" if tired else ""

    @property
    def dead(self) -> bool:
        """Whether only a new process can work again."""
        return not self._thread.is_alive()

    async def start(self) -> None:
        """Load and begin; returns when the loop runs.

        Raises:
            StartError: The agents cannot be loaded.
        """
        if self._given:
            self.agents = [AgentInfo(a.name, a.kind, "", a.resumable) for a in self._given]
        else:
            self._served = await load_served(self._settings, self._specs)
            self.agents = self._served.infos
            self._given = self._served.agents
        facts = self._served.facts if self._served is not None else dict
        board = self._board = BlameBoard.alone()
        if self._served is not None:
            self._served.pool.watch = board.enter_thread
        tired = self._served.pool.tired if self._served is not None else str
        name, clock = worker_name(os.getpid()), SystemClock()
        self._worker = Worker(
            self._store,
            [*self._given, SyntheticAgent()],
            self._settings,
            self._log,
            clock,
            name,
            facts,
            board,
            tired,
            self.agents,
        )
        self._thread.start()
        self._started.wait(_START_S)

    async def close(self, drain_s: float) -> None:
        """Drain, release, end: bounded, also when the loop is blocked."""
        if self._worker is None:
            return
        await self._ask(self._worker.close(drain_s), drain_s + _DRAIN_EXTRA_S)
        loop = asyncio.get_running_loop()
        until = loop.time() + _END_S
        while self._thread.is_alive() and loop.time() < until:  # noqa: ASYNC110 - a thread ends, no event says so
            await asyncio.sleep(0.01)
        if self._thread.is_alive():
            self._log.write("worker_thread_stuck", worker=self.name)
        if self._served is not None:
            self._served.pool.close(1.0)

    def names(self) -> list[str]:
        """Of the worker that may hold runs here."""
        return [self.name]

    async def stop_all(self) -> None:
        """The second signal: every run ends now."""
        if self._worker is not None:
            await self._ask(self._worker.stop_all(), self._settings.stop_grace_s + 3.0)

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """What a run waits on, asked for at most half a second; of a loop that does not answer, why."""
        worker, board = self._worker, self._board
        if worker is None or board is None or not self._thread.is_alive():
            return None
        answers: list[dict[str, Any] | None] = []
        await self._ask(_into(answers, worker.inspect(key)), _INSPECT_S)
        if answers:
            return answers[0]
        blamed = board.blamed()
        own = blamed is not None and blamed.tenant == key.tenant
        return {
            "waiting_on": "its worker's loop, which is blocked",
            "since_ms": worker.silent_ms(),
            "blocked_by": blamed.run if own and blamed else None,
            "blocked_at": stack_text(self._thread.ident or 0) if own else None,
        }

    async def _ask(self, work: Coroutine[Any, Any, Any], limit_s: float) -> Any:
        """Carry out `work` on the worker's loop; its answer, or None after `limit_s` seconds."""
        if self._loop is None or not self._thread.is_alive():
            work.close()
            return None
        answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        done, _ = await asyncio.wait([answer], timeout=limit_s)
        return answer.result() if done else None

    def _run(self) -> None:
        try:
            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
            if runner.run(self._main()):
                runner.close()  # else it would wait for what ignores its end
        except BaseException as error:  # noqa: BLE001 - the thread's last word; readiness sees that it is gone
            self._log.write("worker_thread_died", worker=self.name, error=repr(error))
        finally:
            self._started.set()

    async def _main(self) -> bool:
        """The worker's life; whether nothing of it is left on the loop."""
        assert self._worker is not None  # noqa: S101 - set by `start`
        assert self._board is not None  # noqa: S101 - as above
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(self._board.factory)
        self._started.set()
        try:
            await self._worker.run()
        finally:
            if self._served is not None:
                owner = Owner(lambda name, error: self._log.write("task_failed", task=name, error=repr(error)))
                await settle([owner.spawn(self._served.aclose(), "close models")], 1.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        return not await settle(left, _LEFT_S)
