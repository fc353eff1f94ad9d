"""`holdfast worker`: workers on a store that gateways elsewhere serve. Supervised like the one of `holdfast serve`.

This process runs no user code: each worker is a child of its own, judged by its beat, killed where it blocks, replaced.
It reaps, too, so that runs end while one process of the deployment lives. The first SIGTERM or SIGINT drains and gives
back what did not end, the second stops all runs now.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop

from holdfast import __version__
from holdfast.aio import Owner, wait_event
from holdfast.app.asking import answer_questions
from holdfast.app.build import version
from holdfast.app.entry import make_probe_access
from holdfast.app.errors import StartError
from holdfast.app.interpreter import settle_imports, share_fairly
from holdfast.app.observing import CLOSE_S, HURRIED_CLOSE_S, end, look_at_sinks, observe, own_logging
from holdfast.app.readiness import Readiness
from holdfast.app.runtime import drain_of
from holdfast.app.signals import Signals
from holdfast.app.startup import MODELS_S, READY_S, SHORT_S, STORE_S, Startup
from holdfast.app.supervisor import Supervisor
from holdfast.app.trial import LOAD_S, try_agents
from holdfast.app.upstream import find_model, until_model
from holdfast.config import Settings
from holdfast.engine.reaper import Reaper
from holdfast.gateway.access import Access
from holdfast.gateway.probes import ProbeApp
from holdfast.gateway.server import Server
from holdfast.stores.opening import OpenStore, open_store, shown
from holdfast.telemetry import Log, Telemetry, ensure_descriptors, guard_prints

_WATCH_S: Final = 5.0
_LOOK_S: Final = 0.1
_CLOSE_S: Final = 1.0
_CUT_S: Final = 20.0  # a start that a signal cuts short ends what it began
_CONNECTIONS: Final = 64  # probes and scrapes


def work(settings: Settings, specs: Sequence[str], *, announce: Callable[[str], None]) -> int:
    """Work until a signal.

    Args:
        settings: The merged settings; `processes` says how many workers.
        specs: Agents as `[name=]module:attr`.
        announce: Takes each line of what works.

    Returns:
        The exit code: 0 after a signal.

    Raises:
        StartError: It cannot start; says why and what to do.
    """
    if urlsplit(settings.store).scheme == "sqlite":
        raise StartError(
            f"cannot start: {settings.store} has one worker, which `holdfast serve` starts; "
            "for workers of their own give --store redis://host:port/db"
        )
    settle_imports()
    share_fairly()
    ensure_descriptors()
    guard_prints()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(settings, specs, announce))


async def _work(settings: Settings, specs: Sequence[str], announce: Callable[[str], None]) -> int:
    log = Log(settings.log_format)
    own_logging(log)
    async with AsyncExitStack() as stack:
        signals = Signals()
        place = Workplace(settings, specs, log, stack)
        starting = place.owner.spawn(place.start(), "start")
        await _until_started(starting, signals)
        if starting.cancelled() or not starting.done():
            log.write("shutdown_done")
            return 0
        starting.result()
        _announce(place, announce)
        log.write("ready", workers=",".join(each.name for each in place.workers), pid=os.getpid(), probes=place.url)
        while not await wait_event(signals.first, _WATCH_S):
            pass
        drain_s = drain_of(settings)
        log.write("shutdown", drain_s=drain_s, again="a second signal stops all runs now")
        if place.probes is not None:
            place.probes.closing = True
        closing = [place.owner.spawn(worker.close(drain_s), "close") for worker in place.workers]
        hurry = place.owner.spawn(_hurry(signals, place), "hurry")
        await asyncio.wait(closing, timeout=settings.drain_s + 20.0)
        hurry.cancel()
    log.write("shutdown_done")
    log.flush()
    return 0


async def _until_started(starting: asyncio.Task[None], signals: Signals) -> None:
    """Until the start has ended, in whatever way; a signal cuts it short."""
    while not starting.done():
        await asyncio.wait([starting], timeout=_LOOK_S)
        if signals.first.is_set() and not starting.done():
            starting.cancel()
            await asyncio.wait([starting], timeout=_CUT_S)
            return


class Workplace:
    """The workers of this process and what stands around them, started in the phases of `holdfast serve`.

    A start that fails ends the process in every profile, for whoever started it to start it again; a model that is
    not there yet is waited for in profile dev.

    Attributes:
        workers: Each with a process of its own.
        probes: What answers over HTTP, if `health_port` is set.
    """

    def __init__(self, settings: Settings, specs: Sequence[str], log: Log, stack: AsyncExitStack) -> None:
        """Nothing is opened yet; what is goes on `stack`."""
        self.settings = settings
        self.log = log
        self.startup = Startup(log)
        self.owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        self.workers: list[Supervisor] = []
        self.probes: ProbeApp | None = None
        self.url = ""
        self._hurried = False
        self._specs = specs
        self._stack = stack
        self._access: Access | None = None
        self._store: OpenStore

    async def start(self) -> None:
        """Every phase that can run, then the report of those that failed.

        Raises:
            StartError: With that report.
        """
        start, own, settings = self.startup.run, ("settings",), self.settings
        load_s = LOAD_S * settings.processes + SHORT_S  # one after the other: each has imports to do
        await start("settings", self._settle_settings, limit_s=SHORT_S)
        await start("store", self._open_store, needs=own, limit_s=STORE_S, tries=3)
        await start("models", partial(find_model, settings), needs=own, limit_s=MODELS_S, tries=2)
        await start("tools", self._start_workers, needs=own, limit_s=load_s)
        await start("telemetry", partial(look_at_sinks, self.log), needs=own, limit_s=SHORT_S)
        await start("recovery", self._recover, needs=("store", "tools"), limit_s=SHORT_S)
        self._judge()
        await start("ready", self._answer_probes, needs=("store", "tools", "recovery"), limit_s=READY_S)
        self._judge()
        if not self.startup.ok("models"):
            _ = self.owner.spawn(self._until_model(), "wait for the model")

    async def stop_all(self) -> None:
        """The second signal: all runs end now."""
        self._hurried = True
        for worker in self.workers:
            await worker.stop_all()

    def _judge(self) -> None:
        waits = self.settings.profile == "dev" and [found.phase for found in self.startup.failed] == ["models"]
        if not waits:
            self.startup.check()

    async def _settle_settings(self) -> None:
        if self.settings.health_port:
            self._access = make_probe_access(self.settings, self.log)
        self._stack.push_async_callback(self._end_telemetry, observe(self.settings, self.log, works=False))

    async def _end_telemetry(self, telemetry: Telemetry) -> None:
        await end(telemetry, HURRIED_CLOSE_S if self._hurried else CLOSE_S)

    async def _open_store(self) -> None:
        self._store = await open_store(self.settings.store, say=self.log.write)
        self._stack.push_async_callback(self._store.close)

    async def _start_workers(self) -> None:
        """Start them, each working as soon as it has loaded; without a store, only see whether the agents load."""
        if not self.startup.ok("store"):
            await try_agents(self.settings, self._specs)
            return
        self.workers = [
            Supervisor(self._store, self.settings, self._specs, self.log, []) for _ in range(self.settings.processes)
        ]
        for worker in self.workers:
            self._stack.push_async_callback(worker.close, drain_of(self.settings))
            await worker.start()

    async def _recover(self) -> None:
        """See to it that what a former process left behind is ended or goes on."""
        self._stack.push_async_callback(self.owner.close, _CLOSE_S)
        unanswered = _each([worker.unanswered for worker in self.workers])
        _ = self.owner.spawn(Reaper(self._store, self.settings, self.log, unanswered).run(), "reaper")
        if self._store.questions is not None:
            _ = self.owner.spawn(answer_questions(self._store.questions, self.workers, self.log), "questions")

    async def _answer_probes(self) -> None:
        if self._access is None:
            return
        settings, log = self.settings, self.log
        owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        ready = Readiness(
            self._store,
            settings,
            lambda: [(worker.name or f"worker {n}", worker.why) for n, worker in enumerate(self.workers, 1)],
            str,  # that it drains is told by `closing`
            self._access.problem,
            lambda: None,
            owner,
        )
        app = ProbeApp(
            settings, log, self._access, version(settings), ready, self._store.health, self._reports,
            self.startup.document,
        )  # fmt: skip
        server = Server(app, settings.health_host, settings.health_port, connections=_CONNECTIONS, log=log)
        await server.start()
        self._stack.push_async_callback(owner.close, _CLOSE_S)
        self._stack.push_async_callback(server.stop)
        host = f"[{settings.health_host}]" if ":" in settings.health_host else settings.health_host
        self.probes, self.url = app, f"http://{host}:{server.port}"

    async def _reports(self) -> dict[str, Any]:
        """What the workers of this process have reported, the dead among them as long as the store knows them."""
        own = {name for worker in self.workers for name in worker.everyone()}
        return {each.worker: each.facts for each in await self._store.workers() if each.worker in own}

    async def _until_model(self) -> None:
        await until_model(self.settings, lambda why: None)  # said once by its phase, and by /readyz
        self.startup.mend("models")


async def _hurry(signals: Signals, place: Workplace) -> None:
    while not await wait_event(signals.second, _WATCH_S):
        pass
    await place.stop_all()


def _each(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def call() -> None:
        for each in calls:
            each()

    return call


def _announce(place: Workplace, announce: Callable[[str], None]) -> None:
    settings, workers = place.settings, place.workers
    agents = ", ".join(info.name for info in workers[0].agents)
    for line in (
        f"holdfast {__version__} works on {shown(settings.store)}",
        f"  agents   {agents}",
        f"  workers  {len(workers)}, each for {settings.concurrency} runs at once",
        f"  probes   {place.url or 'none: --health-port is not set'}",
    ):
        announce(line)
    sys.stdout.flush()
