"""The composition root: the only place that names concrete parts, and the order in which they start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from holdfast.aio import Owner
from holdfast.app.asking import AskElsewhere, answer_questions
from holdfast.app.build import version
from holdfast.app.descriptors import that_fit
from holdfast.app.entry import make_access
from holdfast.app.errors import StartError
from holdfast.app.observing import CLOSE_S, HURRIED_CLOSE_S, end, look_at_sinks, observe
from holdfast.app.readiness import Readiness, full
from holdfast.app.remote import RemoteWorkers
from holdfast.app.startup import MODELS_S, READY_S, SHORT_S, STORE_S, Startup
from holdfast.app.supervisor import Supervisor
from holdfast.app.synthetic import SyntheticRuns
from holdfast.app.trial import LOAD_S, try_agents
from holdfast.app.upstream import find_model, until_model
from holdfast.config import Settings
from holdfast.engine.reaper import Reaper
from holdfast.engine.sessions import Sessions
from holdfast.gateway.app import GatewayApp, create_app
from holdfast.gateway.server import Server
from holdfast.ports.agent import Agent, AgentInfo
from holdfast.stores.opening import OpenStore, open_store
from holdfast.stores.sqlite.connect import MEMORY
from holdfast.telemetry import Log, Telemetry

if TYPE_CHECKING:
    from holdfast.app.threads import WorkerThread


class Runtime:
    """A whole Holdfast: store, gateway, reaper, and a worker as a supervised process or on a thread of this one.

    Use as an async context manager. Objects of the user's among `specs`, and `agents` of the port in place of them,
    for tests, are served on a thread, as with `in_process`.
    """

    def __init__(
        self,
        settings: Settings,
        specs: Sequence[object] = (),
        *,
        agents: Sequence[Agent] = (),
        log: Log | None = None,
        listen: bool = True,
        make_room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            settings: The merged settings.
            specs: Agents as `[name=]module:attr`, or what such a line names.
            agents: Served as they are, in place of `specs`.
            log: Where facts are written; standard error by default.
            listen: Whether to serve a port; without, `app` is served by somebody else.
            make_room: Called before the port is taken, for whoever answers there until then.
        """
        self.settings = settings
        self._make_room = make_room
        self.log = log or Log(settings.log_format)
        self._specs = specs
        self._named = [spec for spec in specs if isinstance(spec, str)]
        self._given = list(agents)
        self._listens = listen
        self._stack = AsyncExitStack()
        self._owner = Owner(self._task_failed)
        self.startup = Startup(self.log)
        self._works = False
        self._hurried = False
        self._synthetic: SyntheticRuns | None = None
        self._proving: asyncio.Task[None] | None = None
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
        except BaseException:
            await self._stack.aclose()
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
        self._hurried = True
        await self.worker.stop_all()

    async def _start(self) -> None:
        """Every phase that can run, then the report of those that failed."""
        start, own = self.startup.run, ("settings",)
        await start("settings", self._settle_settings, limit_s=SHORT_S)
        await start("store", self._open_store, needs=own, limit_s=STORE_S, tries=3)
        await start("models", partial(find_model, self.settings), needs=own, limit_s=MODELS_S, tries=2)
        await start("tools", self._start_tools, needs=own, limit_s=LOAD_S + SHORT_S)
        await start("telemetry", partial(look_at_sinks, self.log), needs=own, limit_s=SHORT_S)
        await start("recovery", self._recover, needs=("store", "tools"), limit_s=SHORT_S)
        self._judge()
        await start("ready", self._start_gateway, needs=("store", "tools", "recovery"), limit_s=READY_S)
        self._judge()

    def _judge(self) -> None:
        """Raise what is to end this start. Only a model that is not there yet, in dev, is waited for."""
        startup = self.startup
        waits = self.settings.profile == "dev" and [found.phase for found in startup.failed] == ["models"]
        if not waits:
            startup.check()

    async def _settle_settings(self) -> None:
        settings = self.settings
        here = settings.in_process or bool(self._given) or len(self._named) < len(self._specs)
        self._works = settings.worker and (here or settings.store.endswith(MEMORY))
        self._stack.push_async_callback(self._end_telemetry, observe(settings, self.log, works=self._works))
        self.access = make_access(settings, self.log)  # what is degraded there is counted, too
        refuse_lonely(settings)

    async def _end_telemetry(self, telemetry: Telemetry) -> None:
        await end(telemetry, HURRIED_CLOSE_S if self._hurried else CLOSE_S)

    async def _open_store(self) -> None:
        self.store = await open_store(self.settings.store, own=True, say=self.log.write)
        self._stack.push_async_callback(self.store.close)

    async def _start_tools(self) -> None:
        """Load the agents and start the worker that runs them; without a store, only see whether they load."""
        if self.startup.ok("store"):
            await self._start_worker(works=self._works)
        elif self.settings.worker and not self._works:
            await try_agents(self.settings, self._named)

    async def _recover(self) -> None:
        """See to it that what a former process left behind is ended or goes on."""
        self._stack.push_async_callback(self._owner.close, 1.0)
        unanswered = self.worker.unanswered if isinstance(self.worker, Supervisor) else None
        _ = self._owner.spawn(Reaper(self.store, self.settings, self.log, unanswered).run(), "reaper")
        if self.store.questions is not None and not isinstance(self.worker, RemoteWorkers):
            _ = self._owner.spawn(answer_questions(self.store.questions, [self.worker], self.log), "questions")

    async def _until_model(self) -> None:
        """Refuse runs until the model that was missing at the start has been there once."""
        await until_model(self.settings, self._model_missing)
        self.sessions.missing = ""
        self.startup.mend("models")

    def _model_missing(self, why: str) -> None:
        self.sessions.missing = f"models: {why}"

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
            self.worker = Supervisor(self.store, settings, self._named, self.log, inherited, held_up_s)
        await self.worker.start()
        self._stack.push_async_callback(self._close_worker)

    async def _close_worker(self) -> None:
        await self.worker.close(self.drain_s)

    async def _start_gateway(self) -> None:
        settings = self.settings
        inspector = AskElsewhere(self.store, self.worker, self.log)
        self.sessions = Sessions(
            self.store, settings, self.log, lambda: self.worker.agents, inspector, version(settings)
        )
        ready = Readiness(
            self.store,
            settings,
            lambda: [(self.worker.name, self.worker.why)],
            lambda: "draining" if self.sessions.draining else self.sessions.missing,
            self.access.problem,
            lambda: None if self._synthetic is None else self._synthetic.part(),
            self._owner,
        )
        self.app = create_app(
            self.sessions,
            settings,
            self.log,
            version=dict(version(settings)),
            ready=ready,
            startup=self.startup.document,
            access=self.access,
        )
        if not self.startup.ok("models"):
            self.sessions.missing = self.startup.summary()
            _ = self._owner.spawn(self._until_model(), "wait for the model")
        if self._listens:
            connections = that_fit(settings.connections, self.log)
            self.server = Server(self.app, settings.host, settings.port, connections=connections, log=self.log)
            if self._make_room is not None:
                await self._make_room()
            await self.server.start()
        self._stack.push_async_callback(self._close_gateway)
        if settings.synthetic_run_s:
            self._synthetic = SyntheticRuns(
                self.app, self.access.synthetic, settings.synthetic_run_s, self._full, self.log
            )
            self._proving = self._owner.spawn(self._synthetic.forever(), "synthetic runs")

    async def _full(self) -> str:
        cap = self.settings.runs_running
        if cap and (await self.store.health()).get("runs", {}).get("running", 0) >= cap:
            return f"{cap} runs are worked on, as many as runs_running allows"
        return full(await self.store.workers())

    async def _close_gateway(self) -> None:
        # No new runs first, but streams stay open while runs drain: their readers shall see the end.
        self.sessions.draining = True
        if self._proving is not None:
            self._proving.cancel()
        until = asyncio.get_running_loop().time() + self.drain_s
        await self.worker.close(self.drain_s)
        # Runs of workers elsewhere go on, and most readers with them, at another server; the others would be cut off.
        await self.app.drain(until - asyncio.get_running_loop().time(), lambda: self._hurried)
        if self._listens:
            await self.server.stop()
        else:
            await self.app.close(1.0)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self.log.write("task_failed", task=name, error=repr(error))


def drain_of(settings: Settings) -> float:
    """How long a shutdown lets runs go on; 3 s at most in profile dev."""
    return min(3.0, settings.drain_s) if settings.profile == "dev" else settings.drain_s


def refuse_lonely(settings: Settings) -> None:
    """A server without a worker needs a store that workers of other processes can reach."""
    if not settings.worker and urlsplit(settings.store).scheme == "sqlite":
        raise StartError(
            f"cannot start: --no-worker needs a store that workers elsewhere share, and --store is {settings.store}; "
            "give --store redis://host:port/db, and start `holdfast worker` with the same"
        )
