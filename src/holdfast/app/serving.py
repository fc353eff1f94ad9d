"""`holdfast serve`: a runtime that owns the process's signals, and says what it is."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import uvloop

from holdfast import __version__
from holdfast.aio import Owner, wait_event
from holdfast.app.build import version
from holdfast.app.descriptors import raise_limit
from holdfast.app.entry import make_access
from holdfast.app.errors import StartError
from holdfast.app.interpreter import settle_imports, share_fairly
from holdfast.app.observing import own_logging
from holdfast.app.remote import RemoteWorkers
from holdfast.app.runtime import Runtime
from holdfast.app.signals import Signals
from holdfast.app.startup import Startup
from holdfast.app.supervisor import Supervisor
from holdfast.config import Settings, upstream_url
from holdfast.domain.secrets import mask
from holdfast.gateway.refusing import RefusingApp
from holdfast.gateway.server import BindError, Server
from holdfast.stores.opening import shown
from holdfast.telemetry import Log, ensure_descriptors, guard_prints

_POLL_S: Final = 3600.0
_WATCH_S: Final = 1.0
_START_S: Final = 180.0  # more than the limits of all phases
_LEAVE_S: Final = 2.0  # for the interpreter's own end, with tools in it
_AGAIN_S: Final = 5.0  # between two tries of a start that failed
REHEARSAL_MODEL: Final = "rehearsal"
DEMO_AGENT: Final = "holdfast.agents.demo:agent"


def serve(settings: Settings, specs: Sequence[str], *, announce: Callable[[str], None], rehearsal: bool = False) -> int:
    """Serve until a signal: the first drains, the second stops all runs now.

    Args:
        settings: The merged settings.
        specs: Agents as `[name=]module:attr`.
        announce: Takes each line of what is served.
        rehearsal: Start the bundled rehearsal model and serve that.

    Returns:
        The exit code: 0 after a signal.

    Raises:
        StartError: It cannot start; says why and what to do.
    """
    settle_imports()
    share_fairly()
    ensure_descriptors()
    raise_limit(settings.connections)
    guard_prints()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_serve(settings, specs, announce, rehearsal=rehearsal))
    if settings.in_process:
        threading.Thread(target=_leave, args=(code,), name="holdfast-leave", daemon=True).start()
    return code


def _leave(code: int) -> None:
    """End this process, should a thread or a process that its tools have left keep the interpreter from ending."""
    time.sleep(_LEAVE_S)
    os._exit(code)


async def _serve(settings: Settings, specs: Sequence[str], announce: Callable[[str], None], *, rehearsal: bool) -> int:
    log = Log(settings.log_format)
    own_logging(log)
    async with AsyncExitStack() as stack:
        if rehearsal:
            settings = await _rehearse(settings, stack)
            specs = [DEMO_AGENT]
        signals = Signals()
        runtime = await _until_started(settings, specs, log, signals, announce)
        if runtime is None:
            log.write("shutdown_done")
            return 0
        stack.push_async_exit(runtime)
        _announce(runtime, announce, rehearsal=rehearsal)
        broken = await _until_signal(signals, runtime)
        if broken:
            log.write("broken", what=broken, remedy="restart the server")
        log.write("shutdown", drain_s=runtime.drain_s, again="a second signal stops all runs now")
        owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        closing = owner.spawn(runtime.close(), "close")
        hurry = owner.spawn(_hurry(signals, runtime), "hurry")
        await asyncio.wait([closing], timeout=settings.drain_s + 20.0)
        hurry.cancel()
    log.write("shutdown_done")
    log.flush()
    return 1 if broken else 0


async def _until_started(
    settings: Settings, specs: Sequence[str], log: Log, signals: Signals, announce: Callable[[str], None]
) -> Runtime | None:
    """The runtime once it has started, or None after a signal.

    In profile dev a start that fails is told to everybody who asks, and tried again: what is missing comes back, or its
    mistake is corrected. What would be unsafe, or cannot be listened on, ends the start in every profile.
    """
    told = ""
    async with _Refusal(settings, log) as refusal:
        while not signals.first.is_set():
            try:
                return await _start(Runtime(settings, specs, log=log, make_room=refusal.stop), signals)
            except StartError as error:
                report = error.report
                if settings.profile != "dev" or report is None or _hopeless(report):
                    raise
                if str(error) != told:
                    told = str(error)
                    announce(f"{told}\n  every request is refused, and the start tried again each {_AGAIN_S:.0f} s")
                    sys.stdout.flush()
                await refusal.tell(report)
                await wait_event(signals.first, _AGAIN_S)
    return None


async def _start(runtime: Runtime, signals: Signals) -> Runtime | None:
    """Start it, unless a signal comes first: what was started by then ends again."""
    owner = Owner(lambda name, error: None)  # what the start raises is raised here
    starting, told = owner.spawn(runtime.__aenter__(), "start"), owner.spawn(signals.first.wait(), "signal")
    await asyncio.wait([starting, told], timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if starting.done():
        return await starting
    starting.cancel()
    await asyncio.wait([starting], timeout=runtime.settings.drain_s + 20.0)
    if not signals.first.is_set():
        raise StartError(f"cannot start: not done within {_START_S:.0f} s, whatever the limits of its phases")
    return None


def _hopeless(report: Startup) -> bool:
    """Unsafe, or in the way of another server: nothing that may come back by itself."""
    listened = any(found.phase == "ready" for found in report.findings)
    return report.taken or listened or not report.ok("settings")


class _Refusal:
    """Answers everybody that the start failed, also while it is tried again, until what has started needs the port."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._app: RefusingApp | None = None
        self._server: Server | None = None

    async def __aenter__(self) -> _Refusal:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def tell(self, report: Startup) -> None:
        settings, log = self._settings, self._log
        if self._app is not None and self._server is not None:
            self._app.tell(report.document(), report.summary())
            return
        access = make_access(settings, log)
        self._app = RefusingApp(settings, version(settings), report.document(), report.summary(), access)
        server = Server(self._app, settings.host, settings.port, connections=settings.connections, log=log)
        try:
            await server.start()
        except BindError as error:
            raise StartError(f"cannot start: {error.detail}; {error.remedy}") from error
        self._server = server

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()


async def _until_signal(signals: Signals, runtime: Runtime) -> str:
    """Wait for the first signal, "", or for something that only a new process can mend."""
    while not await wait_event(signals.first, _WATCH_S):
        broken = runtime.broken()
        if broken:
            return broken
    return ""


async def _hurry(signals: Signals, runtime: Runtime) -> None:
    while not await wait_event(signals.second, _POLL_S):
        pass
    await runtime.stop_all()


async def _rehearse(settings: Settings, stack: AsyncExitStack) -> Settings:
    from holdfast.rehearsal import CannotListen, RehearsalServer  # of use in a demo only

    try:
        server = await stack.enter_async_context(RehearsalServer())
    except CannotListen as error:
        raise StartError(f"cannot start: {error}") from error
    update = {"model": REHEARSAL_MODEL, "model_url": server.url}
    return settings.model_copy(update=update)


def _processes(runtime: Runtime) -> str:
    worker = runtime.worker
    if isinstance(worker, Supervisor):
        return f"gateway (pid {os.getpid()}) and a supervised worker process (pid {worker.pid})"
    if isinstance(worker, RemoteWorkers):
        return f"gateway (pid {os.getpid()}); workers elsewhere"
    return f"gateway and worker in one process (pid {os.getpid()})"


def _announce(runtime: Runtime, announce: Callable[[str], None], *, rehearsal: bool) -> None:
    settings, url = runtime.settings, runtime.url
    agents = ", ".join(info.name for info in runtime.infos) or "none yet: no worker has reported"
    model = settings.model or "each agent's own"
    if where := upstream_url(settings):
        model += f" at {mask(where)}"
    if any(info.rehearsal for info in runtime.infos):
        model += " (REHEARSAL: answers follow a script, they are not a model's)"
    where = "" if settings.port == runtime.server.port else f" --url {url}"
    if not where and settings.port != 8484:
        where = f" --url {url}"
    for line in (
        f"holdfast {__version__} serves {url}",
        f"  store   {shown(settings.store)} ({runtime.store.durability})",
        f"  model   {model}",
        f"  agents  {agents}",
        f"  mode    {settings.profile}, {_processes(runtime)}",
        f"  entry   {runtime.access.describe()}",
        "try",
        f"  open {url}",
        f"  curl -N {url}/api/runs -H 'Accept: text/event-stream' -d '{{\"input\": \"hello\"}}'",
        f"  holdfast chat{where}",
    ):
        announce(line)
    if rehearsal:
        announce('  on the page: send the line `!tool sleep {"seconds": 30}`, then press Stop')
    sys.stdout.flush()
    runtime.log.write("ready", url=url, pid=os.getpid())
