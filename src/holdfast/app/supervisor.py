"""The supervisor keeps one worker process working: what cannot be cancelled can always be killed.

It lives on the gateway's loop, where no user code runs, and judges the worker by a beat on a pipe, never through the
database. A worker that does not beat for `loop_stall_s` is killed, sooner if a stop waits for it; the run that its
shared memory blames ends with loop_blocked, the others go on from their checkpoints with no attempt counted. A spare
that has imported everything takes its place within half a second. A worker that is tired, because too many of its
threads are held by tools that were given up on, takes no new runs: the spare takes them, while the old one drains and
ends. More than three replacements in a minute: not ready, and it says why.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from holdfast.aio import Owner, settle
from holdfast.app.errors import StartError
from holdfast.app.guard import Guard
from holdfast.app.process import WorkerProcess
from holdfast.app.trial import until_ready
from holdfast.config import Settings
from holdfast.domain.ids import RunKey
from holdfast.engine.blame import Activity
from holdfast.engine.reaper import say_reaped
from holdfast.ports.agent import AgentInfo
from holdfast.ports.store import STOP_TOPIC, RunStore, worker_topic
from holdfast.telemetry import Log

_TICK_S: Final = 0.1
_WORKING_S: Final = 15.0  # from the word to the first beat
_UNANSWERED_STALL_S: Final = 1.0  # without a beat, once the reaper had to end a stopped run
_STOP_STALL_S: Final = 2.5  # without a beat, while a stop waits, or a write that may be one
_CHANGED_S: Final = 0.5  # how late it hears the stops of a worker that took another's place
_HELD_UP_S: Final = 1.0  # a write that has waited so long for another process
_LATE_S: Final = 1.0  # a tick of our own that comes so late says nothing about the worker
_LOOK_S: Final = 0.25  # between two looks at who works, before a kill
_SPARE_PAUSE_S: Final = 15.0  # before another spare, after one that was of no use
_INSPECT_S: Final = 0.5
_REPLACEMENTS_MAX: Final = 3
_REPLACEMENTS_WINDOW_S: Final = 60.0
_CALM_S: Final = 15.0  # between tries, once there were too many
_TIRED_S: Final = 1.0  # a worker that is tired for less than this is left at work
_REAP_S: Final = 2.0
_TAKE_OVER_TRIES: Final = 20
_NAMES_MAX: Final = 256
_TRY_AGAIN_S: Final = 0.5


class Supervisor:
    """Worker and spare."""

    def __init__(
        self,
        store: RunStore,
        settings: Settings,
        specs: Sequence[str],
        log: Log,
        inherited: Sequence[int],
        held_up_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Nothing is started yet.

        Args:
            store: Where leases of a dead worker are expired.
            settings: Handed to the children.
            specs: The agents they load.
            log: Kills and replacements are said.
            inherited: Descriptors that must stay open as long as a worker lives: the owner's lock.
            held_up_s: How long a write of this process has waited for another process to end its transaction.
        """
        self._held_up_s = held_up_s
        self._store = store
        self._settings = settings
        self._specs = specs
        self._log = log
        self._inherited = inherited
        self._owner = Owner(self._task_failed)
        self._guard = Guard()
        self._worker: WorkerProcess | None = None
        self._spare: WorkerProcess | None = None
        self._spare_due = 0.0
        self._starting: WorkerProcess | None = None
        self._retired: dict[WorkerProcess, float] = {}  # take no new runs, and must have ended by then
        self._replaced: deque[float] = deque(maxlen=_REPLACEMENTS_MAX + 1)
        self._stop_asked_at = 0.0
        self._unanswered_at = 0.0
        self._closing = False
        self._names: deque[str] = deque(maxlen=_NAMES_MAX)
        self._inspection = 0
        self.agents: list[AgentInfo] = []
        self.why = "not started"

    @property
    def name(self) -> str:
        """The present worker's name."""
        return self._worker.name if self._worker else ""

    @property
    def pid(self) -> int | None:
        """The present worker's process id."""
        return self._worker.pid if self._worker else None

    @property
    def dead(self) -> bool:
        """Never: a worker that ends is replaced."""
        return False

    async def start(self) -> None:
        """Start the first worker, and a spare behind it.

        Raises:
            StartError: The agents cannot be loaded; says what the child said.
        """
        self._guard.tend()
        process = self._spawn()
        why = "the start was cut short"
        try:
            why = await until_ready(process)
        finally:
            if why:
                await self._discard(process)
                await self._guard.close()
        if why:
            raise StartError(why if why.startswith("cannot start") else f"cannot start: {why}")
        self.agents = process.agents
        self._put_to_work(process)
        _ = self._owner.spawn(self._watch(), "supervise")
        _ = self._owner.spawn(self._hear_stops(), "hear stops")

    async def close(self, drain_s: float) -> None:
        """Let the worker drain and release, then end; bounded, whatever it does."""
        if self._closing:
            return
        self._closing = True
        unused = [self._spare, self._starting]
        self._spare = None
        for process in unused:
            if process is not None:
                await self._discard(process)
        workers = self._at_work()
        for worker in workers:
            worker.say({"order": "close", "drain_s": drain_s})
        until = time.monotonic() + drain_s + 2 * self._settings.stop_grace_s + 5.0
        for worker in workers:
            await self._until_exited(worker, until - time.monotonic())
            await self._discard(worker)
            await self._take_over(worker, None)
        await self._owner.close(1.0)
        await self._guard.close()

    async def stop_all(self) -> None:
        """The second signal: every run ends now."""
        self._stop_asked_at = time.monotonic()
        for worker in self._at_work():
            worker.say({"order": "stop_all"})

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """Ask the worker what a run waits on, for at most half a second; one that drains may have it, too."""
        for worker in self._at_work():
            found = await self._inspect(worker, key)
            if found is not None:
                return found
        return None

    def names(self) -> list[str]:
        """Of the workers that may hold runs here."""
        return [worker.name for worker in self._at_work()]

    def everyone(self) -> Sequence[str]:
        """Of the workers that were ever put to work here, the dead among them; of very many the last."""
        return list(self._names)

    def _at_work(self) -> list[WorkerProcess]:
        """The worker, and those that drain."""
        return [*([] if self._worker is None else [self._worker]), *self._retired]

    async def _inspect(self, worker: WorkerProcess, key: RunKey) -> dict[str, Any] | None:
        self._inspection += 1
        number = self._inspection
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        worker.inspections[number] = answer
        if not worker.say({"order": "inspect", "id": number, "tenant": key.tenant, "run": key.run}):
            worker.inspections.pop(number, None)
            return None
        if await settle([answer], _INSPECT_S):
            worker.inspections.pop(number, None)
            silent_ms = int((time.monotonic() - worker.beat_at) * 1000)
            blamed = worker.board.blamed()
            return {
                "waiting_on": "its worker's loop, which is blocked",
                "since_ms": silent_ms,
                "blocked_by": blamed.run if blamed and blamed.tenant == key.tenant else None,
            }
        found: dict[str, Any] | None = answer.result()
        return found

    # watching

    async def _watch(self) -> None:
        """Each tick one look; what fails is said, and looked at again: this task ends with the server only."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            late_s = time.monotonic() - last - _TICK_S
            last = time.monotonic()
            if late_s > _LATE_S:  # this process was stopped or starved, and has not read the beats of that time
                self._excuse(late_s)
                continue
            try:
                await self._look()
                self._guard.tend()
            except Exception as error:  # noqa: BLE001 - no process or no descriptor can be had now; perhaps later
                self._log.write("supervise_failed", error=repr(error))
                await asyncio.sleep(_TRY_AGAIN_S)
            last = time.monotonic()

    def _excuse(self, late_s: float) -> None:
        self._log.write("gateway_late", late_ms=int(late_s * 1000))
        now = time.monotonic()
        for worker in self._at_work():
            worker.told_at = now
            if worker.beat_at:
                worker.beat_at = now

    async def _look(self) -> None:
        worker = self._worker
        if worker is None:
            await self._replace()
            return
        dead, blamed = await self._judge(worker)
        if dead:
            await self._bury(worker, blamed)
            return
        await self._tend_retired()
        await self._tend_spare()
        await self._relieve(worker)

    async def _judge(self, worker: WorkerProcess) -> tuple[bool, RunKey | None]:
        """Whether a worker is dead, by itself or because it had to be killed, and whom that is blamed on."""
        if worker.exited() or worker.ended.is_set():
            await self._until_exited(worker, _REAP_S)
            if (self._closing or worker in self._retired) and worker.code() == 0:
                return not self._closing, None  # it was told to
            self._log.write("worker_lost", worker=worker.name, pid=worker.pid, code=worker.code())
            return True, None
        overdue = time.monotonic() > self._retired.get(worker, math.inf)
        why = self._stalled(worker) or ("it was told to end long ago" if overdue else "")
        if not why:
            return False, None
        blamed = await self._culprit(worker)
        if not self._stalled(worker) and not overdue:
            return False, None  # it beats again
        worker.kill()
        run = blamed.run if blamed else None
        self._log.write("worker_killed", worker=worker.name, pid=worker.pid, why=why, blamed=run)
        await self._until_exited(worker, _REAP_S)
        return True, blamed

    async def _relieve(self, worker: WorkerProcess) -> None:
        """Let the spare take the new runs, once the worker takes none; one worker drains at a time."""
        if not worker.tired or self._closing:
            self.why = "" if not self._closing else self.why
            return
        now = time.monotonic()
        self.why = f"{worker.tired}; the worker takes no new runs and is being replaced"
        if now - worker.tired_at < _TIRED_S or self._retired:
            return
        if self._recent() >= _REPLACEMENTS_MAX and now - self._replaced[-1] < _CALM_S:
            self.why += f", but it was replaced {self._recent()} times in 60 s: run such tools isolated"
            return
        spare = self._spare
        if spare is None and now > self._spare_due:
            self._spare = self._spawn()
        elif spare is not None and spare.ready.is_set() and not (spare.failed or spare.exited()):
            self._spare = None
            self._replaced.append(now)
            self._retired[worker] = now + self._settings.drain_s + self._settings.run_deadline_s + _REAP_S
            self._log.write("worker_tired", worker=worker.name, pid=worker.pid, why=worker.tired)
            worker.say({"order": "retire", "drain_s": self._settings.drain_s})
            self._put_to_work(spare)

    async def _tend_retired(self) -> None:
        """See those that drain to their end."""
        for worker in list(self._retired):
            dead, blamed = await self._judge(worker)
            if dead:
                del self._retired[worker]
                self._log.write("worker_retired", worker=worker.name, pid=worker.pid, code=worker.code())
                await self._discard(worker)
                _ = self._owner.spawn(self._take_over(worker, blamed), f"take over from {worker.name}")

    async def _culprit(self, worker: WorkerProcess) -> RunKey | None:
        """Whose step, or whose sync tool, blocks the loop."""
        activity = Activity(worker.pid, worker.board)
        if activity.in_threads:
            await asyncio.sleep(_LOOK_S)
        return activity.culprit(_LOOK_S)

    async def _tend_spare(self) -> None:
        """A spare that has died, or could not load, makes room for another; not at once if it was of no use."""
        if self._closing:
            return
        spare = self._spare
        if spare is not None and (spare.exited() or spare.failed):
            self._spare = None
            if spare.failed or not spare.ready.is_set():
                self._spare_due = time.monotonic() + _SPARE_PAUSE_S
            await self._until_exited(spare, _REAP_S)
            self._log.write("spare_lost", pid=spare.pid, code=spare.code(), why=spare.failed or None)
            await self._discard(spare)
        if self._settings.spare and self._spare is None and time.monotonic() > self._spare_due:
            self._spare = self._spawn()

    def _stalled(self, worker: WorkerProcess) -> str:
        """Why the worker must be killed now, or ""."""
        now = time.monotonic()
        if not worker.beat_at:
            return "it did not begin to work" if now - worker.told_at > _WORKING_S else ""
        silent_s = now - worker.beat_at
        if silent_s > self._settings.loop_stall_s:
            return f"no beat for {silent_s:.1f} s"
        # A stop that was asked within the grace before the last beat may be what the loop is blocked by: cleaning up.
        if silent_s > _STOP_STALL_S and self._stop_asked_at > worker.beat_at - self._settings.stop_grace_s:
            return f"no beat for {silent_s:.1f} s, and a stop waits"
        # Held up inside its transaction it keeps every writer waiting, and the stop that would be heard above is one.
        if silent_s > _STOP_STALL_S and self._held_up_s() > _HELD_UP_S:
            return f"no beat for {silent_s:.1f} s, and it holds the database"
        if silent_s > _UNANSWERED_STALL_S and self._unanswered_at > worker.beat_at:
            return f"no beat for {silent_s:.1f} s, and the reaper had to answer a stop"
        return ""

    def unanswered(self) -> None:
        """The reaper ended a run whose worker did not take up its stop: a loop without a beat is blocked for good."""
        self._unanswered_at = time.monotonic()

    async def _hear_stops(self) -> None:
        """A stop that waits for a worker without a beat shortens its time; one of another worker's run does not."""
        while True:
            heard_of = self.name
            with self._store.subscribe(worker_topic(STOP_TOPIC, heard_of)) as wake:
                while self.name == heard_of:
                    if await wake.wait(_CHANGED_S):
                        self._stop_asked_at = time.monotonic()

    async def _bury(self, worker: WorkerProcess, blamed: RunKey | None) -> None:
        """The replacement first, then the runs of the dead."""
        self._worker = None
        self.why = "the worker has ended and is being replaced"
        await self._discard(worker)
        self._replaced.append(time.monotonic())
        _ = self._owner.spawn(self._take_over(worker, blamed), f"take over from {worker.name}")
        if not self._too_many():
            await self._replace()

    def _recent(self) -> int:
        return sum(time.monotonic() - at < _REPLACEMENTS_WINDOW_S for at in self._replaced)

    def _too_many(self) -> bool:
        return self._recent() > _REPLACEMENTS_MAX

    async def _replace(self) -> None:
        """Put the spare to work, or a new process; after too many in a minute, wait before each."""
        if self._closing:
            return
        if self._too_many():
            self.why = f"the worker was replaced more than {_REPLACEMENTS_MAX} times in 60 s; its log lines say why"
            if time.monotonic() - self._replaced[-1] < _CALM_S:
                return
            self._replaced.append(time.monotonic())
        process = await self._take_spare() or self._spawn()
        self._starting = process
        why = await until_ready(process)
        self._starting = None
        if self._has_closed():
            await self._discard(process)
        elif why:
            await self._discard(process)
            self._replaced.append(time.monotonic())
            self.why = why
            self._log.write("worker_not_ready", why=why)
        else:
            self._put_to_work(process)

    async def _take_spare(self) -> WorkerProcess | None:
        """The spare, if it is of use."""
        spare, self._spare = self._spare, None
        if spare is None or not (spare.exited() or spare.failed):
            return spare
        await self._discard(spare)
        return None

    def _has_closed(self) -> bool:
        return self._closing

    def _put_to_work(self, process: WorkerProcess) -> None:
        self._worker = process
        self._names.append(process.name)
        process.told_at = time.monotonic()
        process.say({"order": "go"})
        self.why = ""
        self._log.write("worker_started", worker=process.name, pid=process.pid)

    def _spawn(self) -> WorkerProcess:
        process = WorkerProcess(self._settings, self._specs, self._inherited)
        self._guard.watch(process.pid)
        return process

    async def _until_exited(self, process: WorkerProcess, limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while not process.exited() and time.monotonic() < until:  # noqa: ASYNC110 - waitpid has no event here
            await asyncio.sleep(0.01)

    async def _discard(self, process: WorkerProcess) -> None:
        """Kill it if it lives, and close what we have of it."""
        if not process.exited():
            process.kill()
            await self._until_exited(process, _REAP_S)
        process.let_go()
        if process.exited():
            self._guard.release(process.pid)

    async def _take_over(self, worker: WorkerProcess, blamed: RunKey | None) -> None:
        """Take what a dead worker held at once, as often as the store needs to hear it."""
        for _ in range(_TAKE_OVER_TRIES):
            try:
                reaped = await self._store.bury(worker.name, blamed)
            except Exception as error:  # noqa: BLE001 - said and repeated; the leases expire by themselves in the end
                self._log.write("bury_failed", worker=worker.name, error=repr(error))
                await asyncio.sleep(_TRY_AGAIN_S)
            else:
                for each in reaped:
                    say_reaped(self._log, each)
                return

    def _task_failed(self, name: str, error: BaseException) -> None:
        self._log.write("task_failed", task=name, error=repr(error))
