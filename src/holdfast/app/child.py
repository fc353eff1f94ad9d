"""A worker process: `python -m holdfast.app.child ORDERS REPORTS BOARD [FD...]`, started by the supervisor only.

Two threads of it belong to nobody's code: one watches the orders pipe, so that the process ends within two seconds of
its gateway whatever the loop does; the heartbeat renews leases. Where no thread can run, the guard process kills.
Signals are the gateway's: this process ignores them.

A spare has imported everything and loaded the agents; it opens the store and claims when it is told to go.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvloop

from holdfast.aio import Owner, not_for_forks, settle, wait_event
from holdfast.app.errors import StartError
from holdfast.app.interpreter import settle_imports, share_fairly, unswept
from holdfast.app.observing import (
    CLOSE_S,
    HURRIED_CLOSE_S,
    TRACER,
    end,
    look_at_sinks,
    observe,
    own_logging,
    worker_facts,
)
from holdfast.app.pipes import GATEWAYS_SIGNALS, Line, LineReader, write_line, write_long
from holdfast.config import Settings
from holdfast.domain import secrets
from holdfast.domain.ids import RunKey
from holdfast.engine.blame import BlameBoard
from holdfast.engine.worker import Worker, worker_name
from holdfast.ports.clock import SystemClock
from holdfast.stores.opening import OpenStore, StoreError, elsewhere, open_store
from holdfast.telemetry import Log, guard_prints

if TYPE_CHECKING:
    from holdfast.app.served import Served

_BEAT_S: Final = 0.25
_OPEN_AGAIN_S: Final = 0.5
_ORPHAN_S: Final = 1.5
_ORPHANED: Final = 70
_BROKEN: Final = 71
_LEFT_S: Final = 0.5
_POLL_MS: Final = 60_000
_DESCRIPTORS_LEFT: Final = 32  # fewer, and models cannot be reached any more
_DESCRIPTORS_LOOKED_AT: Final = 65_536  # what the kernel allows beyond that is not looked at


class Child:
    """One worker process."""

    def __init__(self, orders: int, reports: int, board: int) -> None:
        """Take the inherited descriptors."""
        self._orders = orders
        self._reports = reports
        self._board = BlameBoard(board)
        self._name = worker_name(os.getpid())
        self._go = asyncio.Event()
        self._ended = asyncio.Event()
        self._settings = Settings.model_validate({})
        self._specs: list[str] = []
        self._configured = asyncio.Event()
        self._hurried = False
        self._worker: Worker | None = None
        self._store: OpenStore | None = None
        self._log = Log()
        self._owner = Owner(self._task_failed)

    async def run(self) -> int:
        """Load, wait for the word, work, end."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._board.factory)
        LineReader(self._orders, self._take, self._orphaned)
        self._say({"report": "hello", "pid": os.getpid()})
        if not await self._until(self._configured):
            return 1
        try:
            served = await self._load()
        except StartError as error:
            self._say({"report": "failed", "why": str(error)})
            return 1
        except Exception as error:  # noqa: BLE001 - user code at import; the supervisor says it
            trace = traceback.format_exc(limit=-6)
            why = f"cannot start: {type(error).__name__}: {error}\n{trace}"
            self._say({"report": "failed", "why": secrets.mask(why)[:3000]})
            return 1
        infos = [msgspec.to_builtins(info) for info in served.infos]
        self._say({"report": "ready", "worker": self._name, "agents": infos})
        if await self._until(self._go):
            await self._work(served)
        return 0

    async def _load(self) -> Served:
        """Import the agent libraries, then the agents; the end of the orders pipe is seen meanwhile, too."""
        with unswept():
            from holdfast.app.served import load_served

        settle_imports()
        return await load_served(self._settings, self._specs)

    async def _work(self, served: Served) -> None:
        from holdfast.agents.synthetic import SyntheticAgent  # with the libraries of `_load`

        _ = self._owner.spawn(self._beat(), "beat")
        store = self._store = await self._open_store()
        if store is None or self._ended.is_set():
            return  # told to end, or orphaned, before there was anything to end
        telemetry = observe(self._settings, self._log)
        self._spawn(self._look_at_tracer(), "look at the tracer")
        clock = SystemClock()
        served.pool.watch = self._board.enter_thread
        facts = worker_facts(served.facts, self._log)
        worker = Worker(
            store,
            [*served.agents, SyntheticAgent()],
            self._settings,
            self._log,
            clock,
            self._name,
            facts,
            self._board,
            lambda: served.pool.tired() or _starved(),
            served.infos,
        )
        self._worker = worker
        self._say({"report": "working", "worker": self._name})
        await worker.run()
        self._worker = None
        await served.aclose()
        served.pool.close(1.0)
        await store.close()
        await end(telemetry, HURRIED_CLOSE_S if self._hurried else CLOSE_S)

    async def _look_at_tracer(self) -> None:
        """Say that runs go on without it; of the other sinks the gateway says so, at its start."""
        if why := await look_at_sinks(self._log, TRACER):
            self._log.write("degraded", worker=self._name, what="telemetry", why=why)

    async def _open_store(self) -> OpenStore | None:
        """Open it. One that is elsewhere may be away for a moment: whoever has it open waits as long, too."""
        patient_s = self._settings.store_outage_s if elsewhere(self._settings.store) else 0.0
        until = time.monotonic() + patient_s
        while True:
            try:
                return await open_store(self._settings.store, say=self._log.write)
            except StoreError as error:
                if self._ended.is_set() or time.monotonic() >= until:
                    self._say({"report": "failed", "why": str(error)})
                    return None
                self._log.write("store_unavailable", worker=self._name, part="open", error=str(error))
            _ = await wait_event(self._ended, _OPEN_AGAIN_S)

    async def _beat(self) -> None:
        while True:
            broken = self._store.broken() if self._store is not None else ""
            if broken:  # nothing can be stored here any more: the next process goes on with the runs
                self._log.write("broken", worker=self._name, what=broken, remedy="none needed: it is replaced")
                sys.stderr.flush()
                os._exit(_BROKEN)
            self._say({"report": "beat", "tired": self._worker.tired() if self._worker is not None else ""})
            await asyncio.sleep(_BEAT_S)

    async def _until(self, event: asyncio.Event) -> bool:
        while not self._ended.is_set():
            if await wait_event(event, 1.0):
                return True
        return False

    def _take(self, order: Line) -> None:
        match order.get("order"):
            case "configure":
                self._settings = Settings.model_validate(order["settings"])
                self._specs = order["specs"]
                self._log = Log(self._settings.log_format)
                secrets.learn(os.environ)
                own_logging(self._log)
                self._configured.set()
            case "go":
                self._go.set()
            case "close":
                self._spawn(self._close(order["drain_s"]), "close")
            case "retire":
                if self._worker is not None:
                    self._spawn(self._worker.retire(order["drain_s"]), "retire")
            case "stop_all":
                self._hurried = True
                if self._worker is not None:
                    self._spawn(self._worker.stop_all(), "stop_all")
            case "inspect":
                self._spawn(self._inspect(order), "inspect")
            case _:
                pass

    async def _inspect(self, order: Line) -> None:
        key = RunKey(order["tenant"], order["run"])
        found = await self._worker.inspect(key) if self._worker is not None else None
        write_long(self._reports, {"report": "inspected", "id": order["id"], "found": found})

    async def _close(self, drain_s: float) -> None:
        self._ended.set()
        if self._worker is not None:
            await self._worker.close(drain_s)

    def _orphaned(self) -> None:
        """The gateway is gone: release what can be released, within the time that `_watch` gives."""
        self._spawn(self._close(0.0), "orphaned")

    def _spawn(self, work: Any, name: str) -> None:
        _ = self._owner.spawn(work, name)

    def _say(self, line: Line) -> None:
        write_line(self._reports, line)

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._log.write("task_failed", worker=self._name, task=name, error=repr(error))


def _starved() -> str:
    """That this process has no descriptors left to open a connection with, or ""; they may have leaked in a tool."""
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _DESCRIPTORS_LOOKED_AT)
    try:
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, max(0, limit - _DESCRIPTORS_LEFT)))
    except OSError:
        return f"all but a few of the {limit} descriptors that it may have are open"
    return ""


def _watch(orders: int) -> None:
    """End the process soon after its orders pipe has ended, whatever its loop is doing."""
    poller = select.poll()
    poller.register(orders, select.POLLHUP | select.POLLERR)
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(_POLL_MS)):
        pass
    time.sleep(_ORPHAN_S)
    os._exit(_ORPHANED)


def _not_meant(number: int, frame: FrameType | None) -> None:
    """The gateway has it too, and says what is to be done."""


async def _bounded(child: Child) -> int:
    """Its whole life, and half a second for what it leaves behind: the process ends, whatever is still there."""
    code = await child.run()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await settle(left, _LEFT_S)
    return code


def main() -> None:
    """Run until the supervisor says so, or is gone."""
    guard_prints(stdout=True)
    share_fairly()
    for number in GATEWAYS_SIGNALS:
        # Not SIG_IGN, which what a tool starts would inherit: its terminate() would then do nothing.
        signal.signal(number, _not_meant)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GATEWAYS_SIGNALS)
    inherited = [int(argument) for argument in sys.argv[1:]]
    for fd in inherited:  # what a tool starts must hold neither our pipes nor the owner's lock
        os.set_inheritable(fd, False)
        not_for_forks(fd)
    orders, reports, board = inherited[:3]
    os.set_blocking(reports, False)
    watch = threading.Thread(target=_watch, args=(os.dup(orders),), name="holdfast-orphan", daemon=True)
    watch.start()
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)  # not closed: that would wait for what ignores its end
    code = runner.run(_bounded(Child(orders, reports, board)))
    Log().flush()
    sys.stderr.flush()
    os._exit(code)  # a tool's thread that does not end must not keep the process


if __name__ == "__main__":
    main()
