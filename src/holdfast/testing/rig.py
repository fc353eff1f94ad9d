"""What a conformance test acts through: a store, its time, and scripted workers."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msgspec.structs import replace

from holdfast.aio import Owner
from holdfast.domain.events import TERMINAL, EventType, decode_event
from holdfast.domain.ids import LOCAL_TENANT, RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import (
    Appended,
    Claim,
    Ending,
    Held,
    Limits,
    Reaped,
    RunRecord,
    RunStore,
    Status,
)
from holdfast.testing import build
from holdfast.testing.build import Draft

GRACE_MS = 2_000
LEASE_MS = 10_000
LONG_LEASE_MS = 1_000 * build.HOUR_MS
STEP_MS = 2_500  # below the 3 s after which a store takes the time for not passed
ROUNDS_MAX = 5_000
CLOSE_S = 5.0

T = TypeVar("T")


def timeless(record: RunRecord) -> RunRecord:
    """`record` without what changes while time passes, to compare two of them."""
    return replace(record, due_in_ms=None, lease_left_ms=None)


class Holder:
    """A worker's end of one claim: it knows the head it believes in, and can repeat its last write."""

    def __init__(self, store: RunStore, claim: Claim) -> None:
        """Hold `claim`, whose run nobody else writes."""
        self._store = store
        self.claim = claim
        self.key = claim.key
        self.fence = claim.fence
        self.head = claim.base
        self._repeat: Callable[[], Awaitable[Appended]] | None = None

    @property
    def held(self) -> Held:
        """As `renew` wants it."""
        return Held(self.key, self.fence)

    def encode(self, *drafts: Draft) -> list[bytes]:
        """`drafts` at the head."""
        return build.encode(self.key.run, self.head, drafts)

    async def append(self, *drafts: Draft, checkpoint: bytes | None = None, consumed: int = 0) -> Appended:
        """Append at the head that this worker believes in."""
        base, events = self.head, self.encode(*drafts)
        return await self._write(lambda: self._store.append(self.key, self.fence, base, events, checkpoint, consumed))

    async def start(self) -> Appended:
        """Append run.started: from here on the claim counts as an attempt."""
        fields = {
            "worker": "w",
            "attempt": self.claim.attempt,
            "epoch": self.fence.epoch,
        }
        return await self.append((EventType.RUN_STARTED, fields))

    async def say(self, value: str, part: int = 0) -> Appended:
        """Append a piece of text."""
        return await self.append(build.text(part, value))

    async def finish(
        self,
        state: State = State.COMPLETED,
        reason: Reason | None = None,
        *before: Draft,
        history: HistoryEntry | None = None,
        leave_inbox: bool = False,
    ) -> Appended:
        """End the run; the terminal event comes after the events `before`."""
        why = reason or build.usual_reason(state)
        base, events = self.head, self.encode(*before, build.terminal(state, why))
        ending = Ending(state=state, reason=why, history=history, leave_inbox=leave_inbox)
        return await self._write(lambda: self._store.finish(self.key, self.fence, base, events, ending))

    async def park(
        self,
        checkpoint: bytes = b"parked",
        approval_ms: int = 100 * build.HOUR_MS,
    ) -> Appended:
        """Park the run with one request."""
        base = self.head
        events = self.encode((EventType.RUN_WAITING, {"requests": [{"call": "c1", "name": "look"}]}))
        return await self._write(lambda: self._store.park(self.key, self.fence, base, events, checkpoint, approval_ms))

    async def release(self) -> Appended:
        """Give the run back."""
        return await self._store.release(self.key, self.fence)

    async def repeat(self) -> Appended:
        """Send the last write once more, byte for byte, as after a lost reply."""
        if self._repeat is None:
            raise ValueError(f"nothing was written yet (run={self.key.run})")
        return await self._repeat()

    async def _write(self, call: Callable[[], Awaitable[Appended]]) -> Appended:
        self._repeat = call
        answer = await call()
        if answer.status is Status.OK:
            self.head = answer.head
        return answer


class Rig:
    """One handle on the store under test."""

    def __init__(self, store: RunStore, advance: Callable[[int], Awaitable[None]]) -> None:
        """Act through `store`; `advance` moves its time."""
        self.store = store
        self._advance = advance
        self._owner = Owner(lambda *_: None)  # the test that awaits the task sees its exception
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="conformance")

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` beside the test, which awaits it; ended with the test at the latest."""
        return self._owner.spawn(work, "beside the test")

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call what blocks, as a heartbeat thread does."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def close(self) -> None:
        """End what was begun beside the test."""
        late = await self._owner.close(CLOSE_S)
        self._pool.shutdown(wait=False)
        assert not late, f"did not end {CLOSE_S} s after it was cancelled: {late}"

    def at(self, store: RunStore) -> Rig:
        """The same helpers on another handle."""
        return Rig(store, self._advance)

    async def create(
        self,
        session: str = "s",
        *,
        policy: Policy = Policy.ENQUEUE,
        limits: Limits = build.CALM,
        tenant: str = LOCAL_TENANT,
        text: str = "hello",
        run: str = "",
    ) -> RunKey:
        """Make a run, which must succeed."""
        new = build.new_run(session, policy=policy, limits=limits, tenant=tenant, text=text, run=run)
        created = await self.store.create(new)
        assert created.status is Status.OK, created
        return new.key

    async def claim(self, worker: str = "w", n: int = 1, lease_ms: int = LONG_LEASE_MS) -> list[Holder]:
        """Claim at most `n` runs."""
        claims = await self.store.claim(worker, n, lease_ms)
        return [Holder(self.store, claim) for claim in claims]

    async def begin(self, key: RunKey, worker: str = "w", lease_ms: int = LONG_LEASE_MS) -> Holder:
        """Claim the next run, which must be `key`, and append run.started."""
        holder = await self.take(key, worker, lease_ms)
        await holder.start()
        return holder

    async def take(self, key: RunKey, worker: str = "w", lease_ms: int = LONG_LEASE_MS) -> Holder:
        """Claim the next run, which must be `key`, and write nothing."""
        holders = await self.claim(worker, 1, lease_ms)
        assert [h.key for h in holders] == [key]
        return holders[0]

    async def running(
        self,
        session: str = "s",
        *,
        limits: Limits = build.CALM,
        lease_ms: int = LONG_LEASE_MS,
        worker: str = "w",
        text: str = "hello",
    ) -> Holder:
        """A run that was made, claimed and begun, in a session that was idle."""
        key = await self.create(session, limits=limits, text=text)
        return await self.begin(key, worker, lease_ms)

    async def record(self, key: RunKey) -> RunRecord:
        """The record of a run that exists."""
        record = await self.store.get(key)
        assert record is not None, f"no run {key}"
        return record

    async def state(self, key: RunKey) -> State:
        """The state of a run that exists."""
        return (await self.record(key)).state

    async def ended(self, key: RunKey) -> tuple[State, Reason | None]:
        """State and reason of a run that exists."""
        record = await self.record(key)
        return record.state, record.reason

    async def log(self, key: RunKey) -> list[dict[str, Any]]:
        """The whole log, decoded; checks what is true of every log at any time."""
        events: list[dict[str, Any]] = []
        epochs: list[int] = []
        for _ in range(ROUNDS_MAX):
            page = await self.store.read(key, len(events))
            assert page.status is Status.OK
            assert page.first == len(events) + 1
            events += [decode_event(data) for data in page.events]
            epochs += page.epochs
            if len(events) >= page.head:
                break
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        assert epochs == sorted(epochs), "an old epoch wrote after a new one"
        assert len(epochs) == len(events)
        ends = [e["seq"] for e in events if e["type"] in TERMINAL]
        assert ends in ([], [len(events)]), f"terminal events at {ends}"
        return events

    async def types(self, key: RunKey) -> list[str]:
        """The types of the events of a log."""
        return [event["type"] for event in await self.log(key)]

    async def reap(self, limit: int = 1_000) -> list[Reaped]:
        """One reap with the usual grace."""
        return await self.store.reap(limit, GRACE_MS)

    async def leap(self, ms: int) -> None:
        """Let time pass in which nobody reaps."""
        await self._advance(ms)

    async def pass_time(self, ms: int) -> list[Reaped]:
        """Let time pass while somebody reaps, as in a deployment that lives; what reap did."""
        done = await self.reap()
        while ms > 0:
            step = min(ms, STEP_MS)
            await self._advance(step)
            done += await self.reap()
            ms -= step
        return done

    async def runs(self, tenant: str = LOCAL_TENANT) -> list[RunRecord]:
        """Every run of a tenant, newest first, page by page."""
        found: list[RunRecord] = []
        for _ in range(ROUNDS_MAX):
            after = found[-1].key.run if found else ""
            page = await self.store.list_runs(tenant, limit=200, after=after)
            found += page
            if len(page) < 200:
                return found
        raise AssertionError(f"list_runs did not end after {len(found)} runs")

    async def drive(self, tenants: Sequence[str] = (LOCAL_TENANT,)) -> list[RunKey]:
        """Complete every run as a worker would; the runs in the order in which they began."""
        begun: list[RunKey] = []
        for _ in range(ROUNDS_MAX):
            holders = await self.claim(n=64)
            for holder in holders:
                begun.append(holder.key)
                await self.complete(holder)
            if not holders:
                break
        for tenant in tenants:
            left = [r for r in await self.runs(tenant) if not r.state.terminal]
            assert not left, f"{len(left)} runs did not end, the last {left[0]}"
        return begun

    async def complete(self, holder: Holder) -> State:
        """Start a claimed run and end it as it must end: completed, or cancelled where it was told to stop."""
        if (await holder.start()).status is Status.FENCED:
            return await self.state(holder.key)
        answer = await holder.finish(State.COMPLETED, leave_inbox=True)
        if answer.status is Status.STOP:
            stopping = (await self.record(holder.key)).stopping
            answer = await holder.finish(State.CANCELLED, stopping or Reason.STOPPED, leave_inbox=True)
        assert answer.status in {Status.OK, Status.FENCED}, answer
        return await self.state(holder.key)

    async def sweep(self, *, older_than_ms: int, bytes_max: int) -> int:
        """Sweep until nothing is left to do; how many logs were forgotten."""
        total = 0
        for _ in range(ROUNDS_MAX):
            done = await self.store.sweep(older_than_ms=older_than_ms, bytes_max=bytes_max)
            total += done
            if not done:
                return total
        raise AssertionError(f"sweep did not end after {total} logs")
