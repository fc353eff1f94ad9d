"""The workers of a server that has none of its own (`serve --no-worker`): what they report to the store of themselves.

Such a server imports no agent code. It serves the agents that workers say they have, and is ready while one of them
reports. Agents that were once known stay known: a prompt then waits for a worker for queue_timeout_s, and says so.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.ports.agent import SERVED, AgentInfo
from holdfast.ports.store import RunStore, WorkerRecord
from holdfast.telemetry import Log

_LOOK_S: Final = 1.0
_LATE_S: Final = 5.0  # beyond a lease: clocks of two machines differ, and reports come each renew_s
_CLOSE_S: Final = 1.0


class RemoteWorkers:
    """Stands where a worker of one's own would: names, agents, readiness. It holds no run."""

    dead: Final = False  # workers come and go, this server stays

    def __init__(self, store: RunStore, settings: Settings, log: Log) -> None:
        """Nothing is known yet."""
        self._store = store
        self._settings = settings
        self._log = log
        self._owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        self._agents: dict[str, AgentInfo] = {}
        self._newest: WorkerRecord | None = None

    @property
    def agents(self) -> list[AgentInfo]:
        """What workers have said that they serve; the first is the default."""
        return list(self._agents.values())

    @property
    def name(self) -> str:
        """The worker that reported last."""
        return self._newest.worker if self._newest else ""

    @property
    def why(self) -> str:
        """Why no run would be worked on now, or ""."""
        newest = self._newest
        if newest is None:
            return "no worker has reported; start one: holdfast worker module:attr --store URL"
        silent_s = time.time() - newest.seen_at / 1000
        if silent_s > self._settings.lease_s + _LATE_S:
            return f"no worker has reported for {silent_s:.0f} s; start one: holdfast worker module:attr --store URL"
        return ""

    async def start(self) -> None:
        """Look once, then each second."""
        await self._look()
        _ = self._owner.spawn(self._forever(), "look for workers")

    async def close(self, drain_s: float) -> None:
        """Nothing here has to drain."""
        await self._owner.close(_CLOSE_S)

    async def stop_all(self) -> None:
        """Runs belong to workers, and go on there."""

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """What a run waits on is known to its worker only, which is asked through the store."""
        return None

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._look()
            except StoreUnavailable as error:
                self._log.write("store_unavailable", part="workers", error=error.detail)
            except Exception as error:  # noqa: BLE001 - said, and looked again: a report may be of another version
                self._log.write("loop_failed", part="workers", error=repr(error))

    async def _look(self) -> None:
        workers = await self._store.workers()
        for worker in workers:
            for fact in worker.facts.get(SERVED, ()):
                info = msgspec.convert(fact, AgentInfo)
                self._agents[info.name] = info
        self._newest = max(workers, key=lambda worker: worker.seen_at, default=self._newest)
