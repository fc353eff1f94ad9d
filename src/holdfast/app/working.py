"""`holdfast worker`: workers on a store that gateways elsewhere serve. Supervised like the one of `holdfast serve`.

This process runs no user code: each worker is a child of its own, judged by its beat, killed where it blocks, replaced.
It reaps, too, so that runs end while one process of the deployment lives. The first SIGTERM or SIGINT drains and gives
back what did not end, the second stops all runs now.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final
from urllib.parse import urlsplit

import uvloop

from holdfast import __version__
from holdfast.aio import Owner, wait_event
from holdfast.app.asking import answer_questions
from holdfast.app.errors import StartError
from holdfast.app.interpreter import share_fairly
from holdfast.app.runtime import drain_of
from holdfast.app.signals import Signals
from holdfast.app.supervisor import Supervisor
from holdfast.config import Settings
from holdfast.engine.reaper import Reaper
from holdfast.stores.opening import OpenStore, StoreError, open_store, shown
from holdfast.telemetry import Log

_WATCH_S: Final = 5.0
_CLOSE_S: Final = 1.0
_OPEN_TRIES: Final = 3
_OPEN_AGAIN_S: Final = 0.5


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
    share_fairly()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(settings, specs, announce))


async def _work(settings: Settings, specs: Sequence[str], announce: Callable[[str], None]) -> int:
    log = Log(settings.log_format)
    owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
    async with AsyncExitStack() as stack:
        store = await _open(settings, log)
        stack.push_async_callback(store.close)
        stack.push_async_callback(owner.close, _CLOSE_S)
        workers = [Supervisor(store, settings, specs, log, []) for _ in range(settings.processes)]
        drain_s = drain_of(settings)
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.close, drain_s)
        unanswered = _each([worker.unanswered for worker in workers])
        _ = owner.spawn(Reaper(store, settings, log, unanswered).run(), "reaper")
        if store.questions is not None:
            _ = owner.spawn(answer_questions(store.questions, workers, log), "questions")
        signals = Signals()
        _announce(settings, workers, announce)
        log.write("ready", workers=",".join(worker.name for worker in workers), pid=os.getpid())
        while not await wait_event(signals.first, _WATCH_S):
            pass
        log.write("shutdown", drain_s=drain_s, again="a second signal stops all runs now")
        closing = [owner.spawn(worker.close(drain_s), "close") for worker in workers]
        hurry = owner.spawn(_hurry(signals, workers), "hurry")
        await asyncio.wait(closing, timeout=settings.drain_s + 20.0)
        hurry.cancel()
    log.write("shutdown_done")
    return 0


async def _open(settings: Settings, log: Log) -> OpenStore:
    """The store; tried again for a moment where it does not answer, as `holdfast serve` does."""
    for tried in range(1, _OPEN_TRIES + 1):
        try:
            return await open_store(settings.store, say=log.write)
        except StoreError as error:
            if tried == _OPEN_TRIES:
                raise StartError(f"cannot start: {error}") from error
            await asyncio.sleep(_OPEN_AGAIN_S)
    raise AssertionError("the last try returns or raises")


async def _hurry(signals: Signals, workers: Sequence[Supervisor]) -> None:
    while not await wait_event(signals.second, _WATCH_S):
        pass
    for worker in workers:
        await worker.stop_all()


def _each(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def call() -> None:
        for each in calls:
            each()

    return call


def _announce(settings: Settings, workers: Sequence[Supervisor], announce: Callable[[str], None]) -> None:
    agents = ", ".join(info.name for info in workers[0].agents)
    for line in (
        f"holdfast {__version__} works on {shown(settings.store)}",
        f"  agents   {agents}",
        f"  workers  {len(workers)}, each for {settings.concurrency} runs at once",
    ):
        announce(line)
