"""The executor drives one claimed run from run.started to its terminal event: begin, drive, watch, end.

It owns one promise: whatever the agent does, the run has its terminal event at most `stop_grace_s` after it was
told to stop, after its deadline, or after its agent has ended. The agent runs in a task of its own. A task that
ignores its cancellation for longer than the grace is abandoned: it loses its fence, so that nothing it still does
can reach the log, and it is counted.

This module is the run's outer edge: the only place where the agent's CancelledError is resolved.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from holdfast.aio import Owner, settle
from holdfast.config import Settings
from holdfast.domain.errors import AgentExit, RunEnded, StoreUnavailable
from holdfast.domain.events import EventType, encode_event
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Reason, State
from holdfast.engine.appender import Appender, Lost
from holdfast.engine.beginning import context_of, read_history, read_log
from holdfast.engine.blame import BlameBoard, work_for
from holdfast.engine.budgets import Budget
from holdfast.engine.deciding import told
from holdfast.engine.outcomes import (
    Outcome,
    Told,
    deadline_error,
    failure,
    internal_failure,
    store_failure,
    terminal,
    tool_ends,
)
from holdfast.engine.strays import end_strays
from holdfast.engine.telling import as_ended, scope_of, tell_end, tell_ends
from holdfast.engine.translate import Translator
from holdfast.engine.watching import RunWatch
from holdfast.ports.agent import Agent, Result, RunContext, Waiting
from holdfast.ports.clock import Clock
from holdfast.ports.probe import Probe, enter
from holdfast.ports.store import Appended, Claim, Ending, InputItem, RunStore, Status
from holdfast.telemetry import Log

T = TypeVar("T")

_FINISH_RETRY_S: Final = 0.2
_CLOSE_S: Final = 10.0


@dataclass(frozen=True)
class Surroundings:
    """What every executor of a worker shares."""

    store: RunStore
    settings: Settings
    log: Log
    clock: Clock
    owner: Owner
    worker: str
    healthy: Callable[[], bool]  # the lease was renewed recently enough to begin new work
    board: BlameBoard | None = None  # where the run in user code is marked


class Executor:
    """One run, one claim."""

    def __init__(self, claim: Claim, agent: Agent, around: Surroundings) -> None:
        """Take the claim; nothing happens before `run`."""
        self.claim = claim
        self.probe = Probe()
        self.abandoned: set[asyncio.Task[Any]] = set()  # tasks that were cancelled and did not leave in time
        self._agent = agent
        self._around = around
        self._told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._over: asyncio.Future[RunEnded] = asyncio.get_running_loop().create_future()  # a limit of ours is reached
        self._began = time.monotonic()
        self._deadline = asyncio.get_running_loop().time() + max(0, claim.deadline_left_ms) / 1000
        self._appender: Appender | None = None
        self._translator: Translator | None = None
        self._ctx: RunContext | None = None
        self.watch = RunWatch(claim, around.settings, around.clock, self.probe, self._deadline)
        self._follower = around.log.telemetry.follow(scope_of(claim))

    def tell(self, told: Told) -> None:
        """Stop, release or lose the run; the first word counts, except that a lost run is lost."""
        if not self._told.done():
            self._told.set_result(told)
            self.watch.told = True

    def lingers(self) -> bool:
        """Whether a task or a thread that worked for the run is still there."""
        return any(not task.done() for task in self.abandoned) or bool(self.probe.threads_running())

    async def run(self) -> None:
        """The whole life of this claim. Raises nothing but what cancels it."""
        outcome: Outcome | None
        try:
            appender, ctx = await self._begin()
            outcome = await self._drive(appender, ctx)
        except Lost as lost:
            self._log("run_lost", status=lost.status)
            return
        except StoreUnavailable as error:
            outcome = replace(store_failure(error, self._now_ms()), open_before=tuple(self._open_calls()))
        except Exception as error:  # noqa: BLE001 - a fault of ours still ends the run, with a cause
            self._log("executor_failed", error=repr(error), trace_back=traceback.format_exc(limit=8))
            outcome = replace(internal_failure(error, self._now_ms()), open_before=tuple(self._open_calls()))
        if outcome is None or self._appender is None:
            return  # lost or released; or never begun: the lease runs out, and no attempt is counted
        try:
            await self._end(self._appender, outcome)
        except Lost as lost:
            self._log("run_lost", status=lost.status)
        except StoreUnavailable as error:
            self._log("finish_failed", error=error.detail, remedy="the reaper ends the run when the store answers")
        except Exception as error:  # noqa: BLE001 - the reaper ends the run when its lease runs out
            self._log("executor_failed", error=repr(error), trace_back=traceback.format_exc(limit=8))

    # begin

    async def _begin(self) -> tuple[Appender, RunContext]:
        """Write run.started, and what a resumed attempt takes back, before the agent does anything."""
        claim, around = self.claim, self._around
        fold, since = await read_log(around.store, claim, self._repeat)
        follower = self._follower
        appender = Appender(around.store, claim, around.settings, around.clock, around.owner, fold, follower)
        self._appender = self.watch.appender = appender
        started = {"worker": around.worker, "attempt": claim.attempt, "epoch": claim.fence.epoch}
        appender.put(EventType.RUN_STARTED, started)
        parts, calls = since.parts(), since.calls()
        if parts or calls:
            dropped = {"step": 0, "reason": "resumed", "parts": parts, "calls": calls}
            appender.put(EventType.ATTEMPT_DISCARDED, dropped)
        history = await read_history(around.store, claim, self._repeat)
        await appender.flush()
        self._raise_failed(appender)
        self._log("stream_start", attempt=claim.attempt)
        budget = Budget(around.settings, fold)
        self._translator = self.watch.translator = Translator(appender, self.probe, self._may_begin, budget)
        ctx = self._ctx = context_of(claim, history, fold, self._deadline, self.probe, self._inbox)
        return appender, ctx

    # drive and watch

    async def _drive(self, appender: Appender, ctx: RunContext) -> Outcome | None:
        """Run the agent until it ends, or is told to, or is out of time. None: the run is not ours to end."""
        loop = asyncio.get_running_loop()
        work = self._spawn_agent(ctx)
        waits: set[asyncio.Future[Any]] = {work, self._told, self._over, appender.failed}
        self.watch.work = work
        await asyncio.wait(waits, timeout=max(0.0, self._deadline - loop.time()), return_when=asyncio.FIRST_COMPLETED)
        if appender.failed.done():
            await self._interrupt(work)
            raise appender.failed.result()
        if work.done() and not self._told.done():
            asks = self._translator.waits if self._translator is not None and not work.cancelled() else None
            return self._finished(work) if asks is None else await self._park(appender, asks)
        if self._told.done():
            return await self._obey(appender, work, self._told.result())
        if self._over.done():
            return await self._cut_short(work, self._over.result())
        return await self._time_up(work)

    def _spawn_agent(self, ctx: RunContext) -> asyncio.Task[Result | None]:
        """Start the agent's task, marked on the board of a supervised worker for as long as it lives."""
        name, board = f"agent {self.claim.key.run}", self._around.board
        if board is None:
            return self._around.owner.spawn(self._iterate(ctx), name)
        slot = self.watch.slot = board.take(self.claim.key)
        context = contextvars.copy_context()
        context.run(work_for, slot)
        work = context.run(self._around.owner.spawn, self._iterate(ctx), name)
        work.add_done_callback(lambda _: board.give_back(slot))
        return work

    async def _iterate(self, ctx: RunContext) -> Result | None:
        """The agent's own task."""
        enter(self.probe)
        translator = self._translator
        assert translator is not None  # noqa: S101 - set by _begin
        events = self._agent.run(ctx)
        try:
            async for event in events:
                try:
                    await translator.take(event)
                except RunEnded as ended:  # the agent is not asked, so it is not waited for longer than the grace
                    self._over.set_result(ended)
                    raise
                if translator.waits is not None:
                    break
        except (SystemExit, KeyboardInterrupt) as error:  # would end the loop that all runs share
            raise AgentExit(error).ended() from error
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
        translator.close_parts()
        return translator.result

    def _finished(self, work: asyncio.Task[Result | None]) -> Outcome:
        now_ms = self._now_ms()
        if work.cancelled():
            error = RunEnded(
                Reason.AGENT_ERROR, "agent_cancelled", "the agent cancelled its own task", remedy="let it raise instead"
            )
            return failure(error, now_ms)
        problem = work.exception()
        if problem is not None:
            if not isinstance(problem, RunEnded):
                lines = traceback.format_exception(problem)
                self._log("agent_failed", error=repr(problem), trace_back="".join(lines)[-4000:])
            elif self._over.done():
                self._tell_late()  # the agent was ended, not heard out: what it had said by then counts
            return replace(failure(problem, now_ms), open_before=tuple(self._open_calls()))
        return Outcome(State.COMPLETED, Reason.FINISHED, result=work.result())

    async def _obey(self, appender: Appender, work: asyncio.Task[Result | None], told: Told) -> Outcome | None:
        open_before = tuple(self._open_calls())
        if told.what == "stop":
            appender.put(EventType.RUN_STOPPING, {"reason": told.reason, "by": told.by})
        late = await self._interrupt(work)
        if told.what == "lost":
            appender.abandon()
            self._log("run_lost", status="lease")
            return None
        if told.what == "release" and not late and self._agent.resumable:
            await self._release(appender)
            return None
        result = None if late or work.cancelled() or work.exception() else work.result()
        return Outcome(
            State.CANCELLED,
            told.reason or Reason.SHUTDOWN,
            by=told.by,
            requested_ms=told.requested_ms,
            result=result,
            abandoned=bool(self.abandoned),
            open_before=open_before,
        )

    async def _cut_short(self, work: asyncio.Task[Result | None], ended: RunEnded) -> Outcome:
        """A limit of ours was reached in the middle of what the agent said; it may take its time to leave."""
        outcome = replace(failure(ended, self._now_ms()), open_before=tuple(self._open_calls()))
        await self._interrupt(work)
        return replace(outcome, abandoned=bool(self.abandoned))

    async def _time_up(self, work: asyncio.Task[Result | None]) -> Outcome:
        now_ms = self._now_ms()
        open_before = tuple(self._open_calls())
        await self._interrupt(work)
        return Outcome(
            State.FAILED,
            Reason.DEADLINE,
            requested_ms=now_ms,
            error=deadline_error((now_ms - self.claim.ready_at) / 1000),
            abandoned=bool(self.abandoned),
            open_before=open_before,
        )

    async def _interrupt(self, work: asyncio.Task[Any]) -> bool:
        """Cancel the agent and wait for it, at most the grace; whether it had to be abandoned."""
        self.watch.told = True
        work.cancel()
        grace_s, began = self._around.settings.stop_grace_s, time.monotonic()
        late = bool(await settle([work], grace_s))
        self.abandoned = {work} if late else set()
        if not self._agent.kind:  # an adapter of ours ends its own, and may have started what other runs share
            self.abandoned |= await end_strays(work, self.watch.slot, began + grace_s - time.monotonic())
        if not late:
            self._tell_late()
        return late

    def _tell_late(self) -> None:
        if self._translator is not None and self._ctx is not None:
            self._translator.late(self._ctx.leftover)

    async def _park(self, appender: Appender, waits: Waiting) -> Outcome | None:
        """Give the run back until somebody has decided; a stop that came before ends it here."""
        self.watch.told = True
        appender.put(EventType.RUN_WAITING, {"requests": told(waits.requests)})
        events = await appender.close(_CLOSE_S)
        key, fence, park = self.claim.key, self.claim.fence, self._around.store.park
        left_ms = int(self._around.settings.approval_deadline_s * 1000)
        answer = await self._repeat(partial(park, key, fence, appender.head, events, waits.checkpoint, left_ms))
        if answer.status is Status.STOP:
            appender.take_back()
            stopped = Outcome(State.CANCELLED, Reason.STOPPED, open_before=tuple(self._open_calls()))
            return await self._overruled(stopped)
        if answer.status not in (Status.OK, Status.DUP):
            raise Lost(answer.status)
        self._log("run_waiting", calls=len(waits.requests))
        return None

    async def _release(self, appender: Appender) -> None:
        rest = await appender.close(_CLOSE_S)
        claim, store = self.claim, self._around.store
        if rest:
            await store.append(claim.key, claim.fence, appender.head, rest)
        answer = await store.release(claim.key, claim.fence)
        self._log("run_released", status=answer.status)
        tell_ends(self._around.log, answer.ends)  # it had been told to stop: then it was no requeue

    async def _inbox(self) -> Sequence[InputItem]:
        return await self._repeat(partial(self._around.store.inbox, self.claim.key))

    def _open_calls(self) -> list[Any]:
        return self._appender.fold.open_calls() if self._appender else []

    async def _may_begin(self) -> None:
        """Hold back new model and tool calls while the lease may be lost; the deadline bounds the wait."""
        while not self._around.healthy():
            self.watch.lease_since = self.watch.lease_since or time.monotonic()
            await asyncio.sleep(0.1)  # a thread renews, it has no event of this loop
        self.watch.lease_since = None

    # end

    async def _end(self, appender: Appender, outcome: Outcome) -> None:
        """Write the terminal event, as the store allows it: STOP turns completed and failed into cancelled."""
        if outcome.state is not State.COMPLETED:
            outcome = replace(outcome, ends=tool_ends(outcome, appender.fold, self.probe))
        self._close_calls(appender, outcome.result)  # a run may complete over a call whose end it never told
        rest = await appender.close(_CLOSE_S)
        for _ in range(4):  # STOP and PENDING_INPUT each change the answer once
            answer, outcome = await self._finish(appender, rest, outcome)
            if answer is None:
                continue
            if answer.status in (Status.OK, Status.DUP):
                self._log_end(outcome)
                return
            raise Lost(answer.status)
        raise Lost(Status.STOP)

    async def _finish(self, appender: Appender, rest: list[bytes], outcome: Outcome) -> tuple[Appended | None, Outcome]:
        claim, around = self.claim, self._around
        now_ms = around.clock.wall_ms()
        timings = self._timings(now_ms)
        kind, fields = terminal(outcome, appender.fold, self.probe, timings, now_ms)
        seq = appender.head + len(rest) + 1
        events = [*rest, encode_event(seq, claim.key.run, kind, now_ms, fields)]
        ending = Ending(
            state=outcome.state,
            reason=outcome.reason,
            usage=fields["usage"],
            error=fields.get("error"),
            receipt=fields.get("receipt"),
            output=fields.get("output", fields.get("partial")),
            history=self._history_entry(appender, outcome),
            rehearsal=self.probe.rehearsal,
            ttft_ms=timings["ttft_ms"],
            leave_inbox=True,
        )
        answer = await self._repeat(lambda: around.store.finish(claim.key, claim.fence, appender.head, events, ending))
        if answer.status is Status.STOP:
            return None, await self._overruled(outcome)
        if answer.status in (Status.OK, Status.DUP):
            self._follower.event(kind, fields)
        return answer, outcome

    async def _repeat(self, operation: Callable[[], Awaitable[T]]) -> T:
        """The same operation again and again while its outcome is unknown, at most `store_outage_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._around.settings.store_outage_s
        while True:
            try:
                answer = await operation()
            except StoreUnavailable:
                if loop.time() > until:
                    raise
                await asyncio.sleep(_FINISH_RETRY_S)
            else:
                return answer

    async def _overruled(self, outcome: Outcome) -> Outcome:
        """The stop flag was set before we finished: the run ends cancelled, its whole output as partial."""
        record = await self._repeat(partial(self._around.store.get, self.claim.key))
        told = self._told.result() if self._told.done() else None
        reason = record.stopping if record else None
        return replace(
            outcome,
            state=State.CANCELLED,
            reason=reason or (told.reason if told else None) or Reason.STOPPED,
            by=told.by if told else "",
            requested_ms=told.requested_ms if told and told.requested_ms else self._now_ms(),
            error=None,
        )

    def _close_calls(self, appender: Appender, result: Result | None) -> None:
        """Every tool.called has its tool.finished, except where the client answers the call."""
        for call in appender.fold.open_calls():
            if result is not None and call.call in result.handed:
                continue
            took_ms = self._translator.tool_ms(call.call) if self._translator else None
            appender.put(EventType.TOOL_FINISHED, call.cut_short(took_ms))

    def _history_entry(self, appender: Appender, outcome: Outcome) -> HistoryEntry | None:
        """What the session keeps; None, where the agent could not say, lets the store derive it."""
        completed = outcome.state is State.COMPLETED
        recovered = self._ctx.recovered if self._ctx else b""
        native = outcome.result.native if outcome.result else recovered
        if not native and (outcome.abandoned or self._agent.kind):
            return None
        return HistoryEntry(
            run=self.claim.key.run,
            state=outcome.state,
            messages=appender.fold.messages(completed=completed, user=self.claim.spec.input),
            native_kind=self._agent.kind if native else "",
            native=native,
            before=self.claim.spec.before,
        )

    def _timings(self, now_ms: int) -> dict[str, Any]:
        first = self._translator.first_content_ms if self._translator else None
        created = self.claim.created_at
        return {
            "queued_ms": max(0, int(now_ms - (time.monotonic() - self._began) * 1000) - created),
            "ttft_ms": None if first is None else max(0, first - created),
            "total_ms": max(0, now_ms - created),
        }

    # words

    @staticmethod
    def _raise_failed(appender: Appender) -> None:
        if appender.failed.done():
            raise appender.failed.result()

    def _log_end(self, outcome: Outcome) -> None:
        """Its own worker tells at once: the store answers it before anybody can claim the next run here."""
        tell_end(self._around.log, as_ended(self.claim, outcome, self._now_ms()))

    def _now_ms(self) -> int:
        return self._around.clock.wall_ms()

    def _log(self, event: str, **facts: Any) -> None:
        claim = self.claim
        self._around.log.write(event, trace=claim.spec.trace, run=claim.key.run, session=claim.session, **facts)
