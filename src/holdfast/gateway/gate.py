"""What every handler is given: the engine, the settings, and the owner of the gateway's few tasks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason
from holdfast.engine.gauges import loop_facts
from holdfast.engine.sessions import Sessions
from holdfast.gateway.access import Access
from holdfast.gateway.checks import Check
from holdfast.gateway.feeds import Feeds
from holdfast.gateway.limits import TenantLimits
from holdfast.telemetry import Log, WorkersTotals

_STOP_TRIES = 10
_STOP_PAUSE_S = 1.0
_RENEW_S = 1.0
_LOOK_S = 0.05


class Closable(Protocol):
    """An open streaming response."""

    @property
    def resumes(self) -> bool:
        """Whether its client can read on elsewhere."""
        ...

    def close(self) -> None:
        """End it now."""
        ...


def _none() -> int:
    return 0


class Gate:
    """The gateway's context: one per app, no state of any run."""

    def __init__(
        self,
        sessions: Sessions,
        settings: Settings,
        log: Log,
        version: dict[str, Any],
        ready: Callable[[], Awaitable[dict[str, Any]]],
        startup: Callable[[], dict[str, Any]],
        access: Access,
    ) -> None:
        self.sessions = sessions
        self.settings = settings
        self.log = log
        self.version = version
        self.startup = startup
        self.access = access
        self.limits = TenantLimits(settings.tenant_requests, settings.tenant_rate_per_s, settings.tenant_burst)
        self.owner = Owner(self._failed)
        self.feeds = Feeds(self.owner, sessions.follow_list, settings.store_outage_s)
        self.ready = Check(self.owner, "ready", ready)
        self.store = Check(self.owner, "store", sessions.health)
        self.workers = Check(self.owner, "workers", self._workers)
        self.worker_totals = WorkersTotals()
        self.description: dict[str, Any] = {}
        self.closing = False
        self.connections: Callable[[], int] = _none  # told by the server
        self._readers: set[Closable] = set()
        self._listened: Counter[tuple[RunKey, int]] = Counter()
        self._renewing = False

    @property
    def readers(self) -> int:
        """How many streaming responses are open."""
        return len(self._readers)

    def facts(self) -> dict[str, Any]:
        """How many of everything this process has: for /health, and for whoever watches that nothing piles up."""
        return {
            "connections": self.connections(),
            "readers": len(self._readers),
            "listened": len(self._listened),
            "tasks": len(self.owner),
            **loop_facts(asyncio.get_running_loop()),
        }

    def attach(self, reader: Closable) -> None:
        """Know a streaming response, to close it with the server."""
        self._readers.add(reader)
        if self.closing:
            reader.close()

    def detach(self, reader: Closable) -> None:
        """Forget a streaming response that has ended."""
        self._readers.discard(reader)

    async def drain(self, limit_s: float, hurried: Callable[[], bool]) -> None:
        """Let the responses end that cannot be read on elsewhere; until `limit_s` is over, or it is `hurried`."""
        until = asyncio.get_running_loop().time() + limit_s
        while not all(reader.resumes for reader in self._readers) and not hurried():
            if asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(_LOOK_S)

    def close_readers(self) -> None:
        """End every streaming response now, and each one that begins from now on: they resume elsewhere."""
        self.closing = True
        for reader in self._readers:
            reader.close()

    @contextmanager
    def listening(self, key: RunKey, lease_ms: int = 0) -> Iterator[None]:
        """Serve a reader of a run which is cancelled without one: renew its listener's lease meanwhile."""
        self._listened[key, lease_ms] += 1
        if not self._renewing:
            self._renewing = True
            _ = self.owner.spawn(self._renew(), "listeners")
        try:
            yield
        finally:
            self._listened[key, lease_ms] -= 1
            self._listened += Counter()  # forgets what is down to 0

    def excuse(self, key: RunKey) -> None:
        """Let a run that waits for a decision do so without a listener; its approval deadline is its bound."""
        _ = self.owner.spawn(self._excuse(key), f"excuse {key.run}")

    def client_gone(self, key: RunKey) -> None:
        """Stop a run whose creating client went away; repeated while the store does not answer."""
        _ = self.owner.spawn(self._stop(key), f"stop {key.run}")

    async def _workers(self) -> dict[str, Any]:
        return {each.worker: each.facts for each in await self.sessions.reports()}

    async def _renew(self) -> None:
        """One write each second for all of them; ends with the last."""
        try:
            while self._listened:
                try:
                    for lease_ms in {lease_ms for _, lease_ms in self._listened}:
                        await self.sessions.listen([k for k, ms in self._listened if ms == lease_ms], lease_ms)
                except StoreUnavailable as error:
                    self.log.write("store_unavailable", part="listeners", error=error.detail)
                await asyncio.sleep(_RENEW_S)
        finally:
            self._renewing = False

    async def _excuse(self, key: RunKey) -> None:
        lease_ms = int(self.settings.approval_deadline_s * 1000)
        for _ in range(_STOP_TRIES):
            try:
                await self.sessions.listen([key], lease_ms)
            except StoreUnavailable:
                await asyncio.sleep(_STOP_PAUSE_S)
            else:
                return

    async def _stop(self, key: RunKey) -> None:
        for _ in range(_STOP_TRIES):
            try:
                await self.sessions.stop(key, "client", Reason.CLIENT_DISCONNECT)
            except StoreUnavailable:
                await asyncio.sleep(_STOP_PAUSE_S)
            else:
                return
        self.log.write("stop_not_stored", run=key.run, tries=_STOP_TRIES)

    def _failed(self, name: str, error: BaseException) -> None:
        self.log.write("task_failed", task=name, error=f"{type(error).__name__}: {error}")
