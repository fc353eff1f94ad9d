"""The composition root: the only place that names concrete parts, and the order in which they start and end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from holdfast import __version__
from holdfast.aio import Owner
from holdfast.app.entry import make_access
from holdfast.app.errors import StartError
from holdfast.app.observing import end, observe
from holdfast.app.readiness import Readiness
from holdfast.app.remote import RemoteWorkers
from holdfast.app.supervisor import Supervisor
from holdfast.config import Settings
from holdfast.engine.reaper import Reaper
from holdfast.engine.sessions import Sessions
from holdfast.gateway.app import GatewayApp, create_app
from holdfast.gateway.server import BindError, Server
from holdfast.ports.agent import Agent, AgentInfo
from holdfast.stores.opening import OpenStore, StoreError, open_store
from holdfast.stores.sqlite.connect import MEMORY
from holdfast.telemetry import Log

if TYPE_CHECKING:
    from holdfast.app.threads import WorkerThread


class Runtime:
    """A whole Holdfast: store, gateway, reaper, and a worker as a supervised process or on a thread of this one.

    Use as an async context manager. `agents` may be given instead of specs, for tests and embedding; they are
    served on a thread, as with `in_process`.
    """

    def __init__(
        self, settings: Settings, specs: Sequence[str] = (), *, agents: Sequence[Agent] = (), log: Log | None = None
    ) -> None:
        """Nothing is opened yet."""
        self.settings = settings
        self.log = log or Log(settings.log_format)
        self._specs = specs
        self._given = list(agents)
        self._stack = AsyncExitStack()
        self._owner = Owner(self._task_failed)
        self.phases: list[dict[str, Any]] = []
        self.store: OpenStore
        self.sessions: Sessions
        self.app: GatewayApp
        self.server: Server
        self.worker: WorkerThread | Supervisor | RemoteWorkers

    async def __aenter__(self) -> Runtime:
        """Start everything, in order of dependency.

        Raises:
            StartError: Something cannot be had; says what and what to do. What was started has ended again.
        """
        try:
            await self._start()
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, (StoreError, BindError)):
                remedy = f"; {error.remedy}" if isinstance(error, BindError) else ""
                raise StartError(f"cannot start: {error}{remedy}") from error
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """As `close` with the drain of the settings."""
        await self.close()

    @property
    def infos(self) -> Sequence[AgentInfo]:
        """The served agents."""
        return self.worker.agents

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.server.port}"

    @property
    def drain_s(self) -> float:
        """How long a shutdown lets runs go on; 3 s at most in profile dev."""
        return drain_of(self.settings)

    def broken(self) -> str:
        """What has ended that cannot begin again in this process, or ""."""
        return self.worker.why if self.worker.dead else self.store.broken()

    async def close(self) -> None:
        """Not ready, drain, release, end; bounded. Safe to call twice."""
        await self._stack.aclose()

    async def stop_all(self) -> None:
        """The second signal: all runs end now."""
        await self.worker.stop_all()

    async def _start(self) -> None:
        settings = self.settings
        self.access = make_access(settings, self.log)
        _refuse_lonely(settings)
        works = settings.worker and (settings.in_process or bool(self._given) or settings.store.endswith(MEMORY))
        self._stack.push_async_callback(end, observe(settings, self.log, works=works))
        with self._phase("store"):
            self.store = await open_store(settings.store, own=True, say=self.log.write)
            self._stack.push_async_callback(self.store.close)
        with self._phase("worker"):
            await self._start_worker(works=works)
        with self._phase("recovery"):
            self._stack.push_async_callback(self._owner.close, 1.0)
            unanswered = self.worker.unanswered if isinstance(self.worker, Supervisor) else None
            _ = self._owner.spawn(Reaper(self.store, settings, self.log, unanswered).run(), "reaper")
        with self._phase("gateway"):
            await self._start_gateway()

    async def _start_worker(self, *, works: bool) -> None:
        """`works`: on a thread of this process."""
        settings = self.settings
        if not settings.worker:
            self.worker = RemoteWorkers(self.store, settings, self.log)
        elif works:
            from holdfast.app.threads import WorkerThread  # with it come the agent libraries

            self.worker = WorkerThread(self.store, settings, self._specs, self._given, self.log)
        else:
            lock = self.store.lock_fd
            inherited = [] if lock is None else [lock]
            held_up_s = self.store.held_up_s
            self.worker = Supervisor(self.store, settings, self._specs, self.log, inherited, held_up_s)
        await self.worker.start()
        self._stack.push_async_callback(self._close_worker)

    async def _close_worker(self) -> None:
        await self.worker.close(self.drain_s)

    async def _start_gateway(self) -> None:
        settings = self.settings
        self.sessions = Sessions(self.store, settings, self.log, lambda: self.worker.agents, self.worker)
        ready = Readiness(
            self.store, settings, lambda: (self.worker.name, self.worker.why), lambda: self.sessions.draining
        )
        self.app = create_app(
            self.sessions,
            settings,
            self.log,
            version={"version": __version__},
            ready=ready,
            startup=lambda: {"started": True, "phases": self.phases},
            access=self.access,
        )
        self.server = Server(self.app, settings.host, settings.port, connections=settings.connections, log=self.log)
        await self.server.start()
        self._stack.push_async_callback(self._close_gateway)

    async def _close_gateway(self) -> None:
        # No new runs first, but streams stay open while runs drain: their readers shall see the end.
        self.sessions.draining = True
        await self.worker.close(self.drain_s)
        await self.server.stop()

    def _phase(self, name: str) -> _Phase:
        return _Phase(name, self.phases)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self.log.write("task_failed", task=name, error=repr(error))


def drain_of(settings: Settings) -> float:
    """How long a shutdown lets runs go on; 3 s at most in profile dev."""
    return min(3.0, settings.drain_s) if settings.profile == "dev" else settings.drain_s


def _refuse_lonely(settings: Settings) -> None:
    """A server without a worker needs a store that workers of other processes can reach."""
    if not settings.worker and urlsplit(settings.store).scheme == "sqlite":
        raise StartError(
            f"cannot start: --no-worker needs a store that workers elsewhere share, and --store is {settings.store}; "
            "give --store redis://host:port/db, and start `holdfast worker` with the same"
        )


class _Phase:
    """Times one phase of the start."""

    def __init__(self, name: str, phases: list[dict[str, Any]]) -> None:
        self._name = name
        self._phases = phases
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        took = round((time.monotonic() - self._began) * 1000)
        self._phases.append({"phase": self._name, "ok": kind is None, "duration_ms": took})
