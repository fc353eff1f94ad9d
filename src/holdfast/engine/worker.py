"""The worker claims runs and holds them: claim loop, control loop, heartbeat, and an executor for each run.

It lives on one event loop, in a thread (`--in-process`) or in a process of its own; it does not know which.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from holdfast.aio import Owner, settle, wait_event
from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import SYNTHETIC_AGENT, SYNTHETIC_TENANT, RunKey
from holdfast.domain.runs import Reason
from holdfast.engine.blame import BlameBoard
from holdfast.engine.executor import Executor, Surroundings
from holdfast.engine.gauges import loop_facts
from holdfast.engine.heartbeat import Heartbeat
from holdfast.engine.lag import BEAT_S, LagGate
from holdfast.engine.outcomes import Told
from holdfast.engine.telling import tell_ends
from holdfast.ports.agent import SERVED, Agent, AgentInfo
from holdfast.ports.clock import Clock
from holdfast.ports.store import CONTROL_TOPIC, READY_TOPIC, Claim, Held, Renewal, RunningCaps, RunStore, worker_topic
from holdfast.telemetry import Log
from holdfast.telemetry.totals import without_metrics
from holdfast.tools import ProcessLimits, enter_limits

_POLL_S: Final = 1.0
_PAUSE_S: Final = 0.5  # after a loop of ours has failed
_CLAIM_MAX: Final = 16
_NOTICE_S: Final = 1.0
_LINGERING_MAX: Final = 64


class Worker:
    """Runs agents under the engine's promises."""

    def __init__(
        self,
        store: RunStore,
        agents: Sequence[Agent],
        settings: Settings,
        log: Log,
        clock: Clock,
        name: str,
        pool_facts: Callable[[], dict[str, Any]] = dict,
        board: BlameBoard | None = None,
        tired: Callable[[], str] = str,
        served: Sequence[AgentInfo] = (),
    ) -> None:
        """Take everything; `run` starts it.

        Args:
            store: Where runs are claimed.
            agents: What is served.
            settings: The bounds.
            log: Where facts are written.
            clock: For what is told to people.
            name: Of this worker, new at each start.
            pool_facts: How the tools' threads are, for /api/workers.
            board: Where the run in user code is marked; None where no supervisor looks.
            tired: Why no new runs should be taken for now, or "".
            served: The agents as gateways elsewhere serve them.
        """
        self._pool_facts = pool_facts
        self._tired = tired
        self._served = [msgspec.to_builtins(info) for info in served]
        self.name = name
        self._store = store
        self._agents = {agent.name: agent for agent in agents}
        self._settings = settings
        self._caps = RunningCaps(settings.runs_running, settings.tenant_runs_running)
        self._log = log
        self._lag = LagGate(settings.claim_lag_s, log, name)
        self._owner = Owner(self._task_failed)
        self._executors: dict[RunKey, tuple[Executor, asyncio.Task[None]]] = {}
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._lingering: dict[RunKey, Executor] = {}  # ended, and a task or thread of theirs has not
        self._accepting = True
        self._freed = asyncio.Event()
        self._closed = asyncio.Event()
        blamed = board.blamed if board is not None else _nobody
        self._heartbeat = Heartbeat(store, settings, log, name, self._held, self._facts, self._deliver, blamed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._processes = ProcessLimits(settings)
        self._around = Surroundings(store, settings, log, clock, self._owner, name, self._heartbeat.healthy, board)
        self._unsaid = replace(self._around, log=log.of_synthetic_runs())

    async def run(self) -> None:
        """Claim and hold until `close` is called; returns when everything has ended or was abandoned."""
        self._loop = asyncio.get_running_loop()
        enter_limits(self._processes)  # of everything that starts here: the runs, their agents, their tools
        self._heartbeat.start()
        loops = [
            self._owner.spawn(self._forever("claims", self._claim_loop), "claims"),
            self._owner.spawn(self._forever("control", self._control_loop), "control"),
            self._owner.spawn(self._forever("beat", self._beat_loop), "beat"),
            self._owner.spawn(self._forever("notices", self._notice_loop), "notices"),
        ]
        while not await wait_event(self._closed, _POLL_S):
            pass
        for task in loops:
            task.cancel()
        await settle(loops, 1.0)
        left = await self._owner.close(self._settings.stop_grace_s)
        if left:
            self._log.write("worker_abandoned", worker=self.name, tasks=len(left), names=", ".join(left)[:500])
        self._heartbeat.stop()

    async def close(self, drain_s: float) -> None:
        """Take no more runs, let those that are held end for `drain_s`, then release or end them; bounded."""
        self._accepting = False
        await self._wait_for_executors(drain_s)
        now_ms = self._around.clock.wall_ms()
        for executor, _ in self._executors.values():
            executor.tell(Told("release", Reason.SHUTDOWN, by="shutdown", requested_ms=now_ms))
        await self._wait_for_executors(self._settings.stop_grace_s + 1.0)
        self._closed.set()

    async def retire(self, drain_s: float) -> None:
        """Take no more runs: those that are held end here, or go on elsewhere after `drain_s` if their agent can.

        The others are bounded by their deadlines. Another worker takes the new ones meanwhile.
        """
        self._accepting = False
        await self._wait_for_executors(drain_s)
        now_ms = self._around.clock.wall_ms()
        for executor, _ in self._executors.values():
            if self._agents[executor.claim.spec.agent].resumable:
                executor.tell(Told("release", Reason.SHUTDOWN, by="shutdown", requested_ms=now_ms))
        while self._executors and not self._closed.is_set():
            await self._wait_for_executors(_POLL_S)
        self._closed.set()

    async def stop_all(self) -> None:
        """The second signal: every run ends now, cancelled with reason shutdown."""
        self._accepting = False
        now_ms = self._around.clock.wall_ms()
        for executor, _ in self._executors.values():
            executor.tell(Told("stop", Reason.SHUTDOWN, by="shutdown", requested_ms=now_ms))
        await self._wait_for_executors(self._settings.stop_grace_s + 1.0)

    def tired(self) -> str:
        """Why this worker takes no new runs for now and should be replaced, or ""."""
        why = self._tired()
        if why or len(self._abandoned) < self._settings.quarantine:
            return why
        bound = self._settings.quarantine
        return f"{len(self._abandoned)} tasks of ended runs ignore their cancellation (quarantine {bound})"

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """What a run waits on that is held here, or that has left something behind; on the loop of this worker."""
        held = self._executors.get(key)
        executor = held[0] if held is not None else self._lingering.get(key)
        if executor is None:
            return None
        around = without_metrics(self._pool_facts())  # what the worker has counted is of all tenants
        return {**executor.watch.inspect(), "abandoned_tasks": len(self._abandoned), **around}

    def silent_ms(self) -> int:
        """How long ago the loop last beat; from any thread."""
        return self._heartbeat.silent_ms()

    # claiming

    async def _claim_loop(self) -> None:
        with self._store.subscribe(worker_topic(READY_TOPIC, self.name)) as wake:
            while self._accepting:
                late = self._lag.late()
                if late:
                    await asyncio.sleep(BEAT_S)  # others were woken, too
                room = self._room(late=late)
                if room <= 0:
                    await self._wait_freed(BEAT_S if late else _POLL_S)
                    continue
                lease_ms = int(self._settings.lease_s * 1000)
                claims = await self._store.claim(self.name, room, lease_ms, self._caps)
                for claim in claims:
                    tell_ends(self._log, claim.before)
                    self._begin(claim)
                if not claims:
                    await wake.wait(_POLL_S)
        await asyncio.sleep(_POLL_S)  # no more claims: `_forever` asks again until the worker is closed

    def _room(self, *, late: bool) -> int:
        """How many runs to ask for."""
        if not self._accepting or self.tired() or not self._heartbeat.healthy():
            return 0
        if late:
            return 0 if self._executors else 1
        return min(self._settings.concurrency - len(self._executors), _CLAIM_MAX)

    async def _wait_freed(self, limit_s: float) -> None:
        self._freed.clear()
        await wait_event(self._freed, limit_s)

    def _begin(self, claim: Claim) -> None:
        agent = self._agents.get(claim.spec.agent)
        if agent is None:
            _ = self._owner.spawn(self._refuse(claim), f"refuse {claim.key.run}")
            return
        quiet = claim.key.tenant == SYNTHETIC_TENANT
        before = self._executors.get(claim.key)
        if before is not None:  # we lost it and have it again: from here on no renewal would tell who had it before
            before[0].tell(Told("lost"))
        executor = Executor(claim, agent, self._unsaid if quiet else self._around)
        task = self._owner.spawn(executor.run(), f"executor {claim.key.run}")
        self._executors[claim.key] = (executor, task)
        task.add_done_callback(lambda _: self._ended(claim.key, executor))

    async def _refuse(self, claim: Claim) -> None:
        """A run of an agent that this worker does not serve: back to the queue, its timeout says the rest."""
        self._log.write("agent_unknown", run=claim.key.run, agent=claim.spec.agent, worker=self.name)
        await asyncio.sleep(_PAUSE_S)
        await self._store.release(claim.key, claim.fence)

    def _ended(self, key: RunKey, executor: Executor) -> None:
        held = self._executors.get(key)
        if held is not None and held[0] is executor:
            del self._executors[key]
        self._lingering = {k: each for k, each in self._lingering.items() if each.lingers()}
        if executor.lingers() and len(self._lingering) < _LINGERING_MAX:
            self._lingering[key] = executor
        for late in executor.abandoned:
            if not late.done():
                self._abandoned.add(late)
                late.add_done_callback(self._abandoned.discard)
        self._freed.set()

    # control

    async def _control_loop(self) -> None:
        with self._store.subscribe(worker_topic(CONTROL_TOPIC, self.name)) as wake:
            while True:
                if await wake.wait(self._settings.renew_s):
                    await self._check()

    async def _check(self) -> None:
        held = self._held()
        if held:
            for renewal in await self._store.renew(self.name, held, int(self._settings.lease_s * 1000)):
                self._take(renewal)

    def _take(self, renewal: Renewal) -> None:
        held = self._executors.get(renewal.held.key)
        if held is None or held[0].claim.fence != renewal.held.fence:
            return
        if renewal.lost:
            held[0].tell(Told("lost"))
        elif renewal.stop is not None:
            held[0].tell(Told("stop", renewal.stop, renewal.stop_by, renewal.stop_at))

    def _deliver(self, renewals: list[Renewal]) -> None:
        for renewal in renewals:
            self._take(renewal)

    async def _beat_loop(self) -> None:
        while True:
            self._heartbeat.beat()
            self._lag.beat()
            await asyncio.sleep(BEAT_S)

    async def _notice_loop(self) -> None:
        """Look at every run for whether it makes progress."""
        pause_s = min(_NOTICE_S, max(BEAT_S, self._settings.stalled_notice_s / 4))
        while True:
            for executor, _ in list(self._executors.values()):
                executor.watch.notice()
            await asyncio.sleep(pause_s)

    # what others ask

    def _held(self) -> list[Held]:
        return [Held(e.claim.key, e.claim.fence) for e, _ in list(self._executors.values())]

    def _facts(self) -> dict[str, Any]:
        return {
            "runs": len(self._executors),
            "concurrency": self._settings.concurrency,
            "abandoned": len(self._abandoned),
            "tasks": len(self._owner),
            "agents": sorted(name for name in self._agents if name != SYNTHETIC_AGENT),
            "accepting": self._accepting and not self.tired() and not self._lag.paused,
            "claims_paused": self._lag.paused,
            "lingering": len(self._lingering),
            "upstreams": sum(executor.probe.upstreams_open for executor, _ in list(self._executors.values())),
            **loop_facts(self._loop),
            "tool_processes": self._processes.running,
            "tool_processes_queued": self._processes.queued,
            **self._pool_facts(),
            SERVED: self._served,
        }

    async def _wait_for_executors(self, limit_s: float) -> None:
        await settle([task for _, task in self._executors.values()], limit_s)

    async def _forever(self, name: str, loop: Any) -> None:
        """A loop of ours that fails is said and begun again: no worker dies in silence."""
        while True:
            try:
                await loop()
            except StoreUnavailable as error:
                self._log.write("store_unavailable", worker=self.name, part=name, error=error.detail)
            except Exception as error:  # noqa: BLE001 - said, and begun again
                trace = traceback.format_exc(limit=8)
                self._log.write("loop_failed", worker=self.name, part=name, error=repr(error), trace_back=trace)
            await asyncio.sleep(_PAUSE_S)

    def _task_failed(self, name: str, error: BaseException) -> None:
        if name.startswith("agent "):  # its executor tells the client
            return
        trace = "".join(traceback.format_exception(error))[-4000:]
        self._log.write("task_failed", worker=self.name, task=name, error=repr(error), trace_back=trace)


def _nobody() -> RunKey | None:
    """Where nobody is marked, nobody is blamed."""
    return None


def worker_name(pid: int) -> str:
    """A name that tells workers of one machine apart, and restarts of one too."""
    return f"w{pid}-{int(time.time() * 1000) % 100_000_000}"
