"""`holdfast serve`: a runtime that owns the process's signals, and says what it is."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import uvloop

from holdfast import __version__
from holdfast.aio import Owner, wait_event
from holdfast.app.errors import StartError
from holdfast.app.interpreter import share_fairly
from holdfast.app.observing import own_logging
from holdfast.app.remote import RemoteWorkers
from holdfast.app.runtime import Runtime
from holdfast.app.signals import Signals
from holdfast.app.supervisor import Supervisor
from holdfast.config import Settings, upstream_url
from holdfast.rehearsal import CannotListen, RehearsalServer
from holdfast.stores.opening import shown
from holdfast.telemetry import Log, ensure_descriptors, guard_prints

_POLL_S: Final = 3600.0
_WATCH_S: Final = 5.0
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
    share_fairly()
    ensure_descriptors()
    guard_prints()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, specs, announce, rehearsal=rehearsal))


async def _serve(settings: Settings, specs: Sequence[str], announce: Callable[[str], None], *, rehearsal: bool) -> int:
    log = Log(settings.log_format)
    own_logging(log)
    async with AsyncExitStack() as stack:
        if rehearsal:
            settings = await _rehearse(settings, stack)
            specs = [DEMO_AGENT]
        runtime = await stack.enter_async_context(Runtime(settings, specs, log=log))
        signals = Signals()
        _announce(runtime, announce, rehearsal=rehearsal)
        broken = await _until_signal(signals, runtime)
        if broken:
            log.write("broken", what=broken, remedy="restart the server; what it stored is there")
        log.write("shutdown", drain_s=runtime.drain_s, again="a second signal stops all runs now")
        owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        closing = owner.spawn(runtime.close(), "close")
        hurry = owner.spawn(_hurry(signals, runtime), "hurry")
        await asyncio.wait([closing], timeout=settings.drain_s + 20.0)
        hurry.cancel()
    log.write("shutdown_done")
    log.flush()
    return 1 if broken else 0


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
        model += f" at {where}"
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
