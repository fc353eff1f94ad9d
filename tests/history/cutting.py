"""A store and an agent that cut a run at a chosen event, so that each place where it can break is tried."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from holdfast.aio import wait_event
from holdfast.domain.digest import Digest
from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.ports.agent import Agent, AgentEvent, RunContext
from holdfast.ports.store import (
    UNCAPPED,
    Appended,
    Claim,
    Created,
    Ending,
    Fence,
    Held,
    NewRun,
    Renewal,
    RunningCaps,
    Status,
)
from holdfast.stores.sqlite import SqliteStore

TAKEN_S = 0.3  # how long a told run may take to hear of it; a cut that the worker cannot hear goes on without
LOST = {"killed", "crashed", "resumed"}  # the worker never hears again of the run
ATTEMPTS = {"crashed": 1}


class Cut:
    """Where one run is cut, and how.

    told       `action` is carried out once event `at` is in the log (a stop, a prompt that supersedes)
    deadline   nothing more is acknowledged until the deadline has passed
    killed     told, then the worker is fenced off: the reaper ends the run, from the log
    crashed    the worker is fenced off: the lease runs out, and there is no second attempt
    resumed    the worker is fenced off and the run given back: a second attempt goes on from the checkpoint
    """

    def __init__(self, at: int, how: str, action: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.at = at
        self.how = how
        self.action = action
        self.done = False


class Cutter:
    """What the store and the test know of each other."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop  # where actions run
        self.cuts: list[Cut] = []
        self.pairs: dict[str, tuple[HistoryEntry, HistoryEntry]] = {}  # run -> what the worker wrote, what is derived

    def add(self, cut: Cut) -> dict[str, Any]:
        """The metadata that names the cut."""
        self.cuts.append(cut)
        return {"cut": len(self.cuts) - 1}

    def of(self, metadata: dict[str, Any]) -> Cut | None:
        return self.cuts[metadata["cut"]] if "cut" in metadata else None


class CuttingStore(SqliteStore):
    """SQLite, with a cut behind the event that each run names in its metadata."""

    cutter: Cutter
    claims: dict[RunKey, tuple[Claim, float]]
    taken: dict[RunKey, asyncio.Event]
    checkpoints: dict[RunKey, tuple[int, bytes]]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.claims = {}
        self.taken = {}
        self.checkpoints = {}

    async def create(self, new: NewRun) -> Created:
        cut = self.cutter.of(new.spec.metadata)
        if cut is not None and cut.how in ATTEMPTS:
            limits = msgspec.structs.replace(new.limits, attempts_max=ATTEMPTS[cut.how])
            new = msgspec.structs.replace(new, limits=limits)
        created = await super().create(new)
        if cut is not None and cut.at <= 1 and created.status is Status.OK and cut.action is not None:
            cut.done = True
            await self._act(cut, new.key)
        return created

    async def claim(self, worker: str, n: int, lease_ms: int, caps: RunningCaps = UNCAPPED) -> list[Claim]:
        claims = await super().claim(worker, n, lease_ms, caps)
        now = asyncio.get_running_loop().time()
        for claim in claims:
            self.claims[claim.key] = (claim, now + claim.deadline_left_ms / 1000)
            self.taken[claim.key] = asyncio.Event()
            if claim.checkpoint is not None:
                self.checkpoints[claim.key] = (claim.checkpoint_seq, claim.checkpoint)
        return claims

    async def renew(self, worker: str, held: Sequence[Held], lease_ms: int) -> list[Renewal]:
        renewals = await super().renew(worker, held, lease_ms)
        for renewal in renewals:
            if renewal.stop is not None and renewal.held.key in self.taken:
                self.taken[renewal.held.key].set()
        return renewals

    async def append(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes | None = None,
        consumed: int = 0,
    ) -> Appended:
        cut = self._due(key, base, len(events))
        if cut is not None and cut.how in LOST and checkpoint is not None:
            cut.at = base + len(events)  # events and their checkpoint are one append: both are there or neither
            await super().append(key, fence, base, events, checkpoint)
            await self._cut_at(cut, key, fence, cut.at, [])
            return Appended(Status.FENCED, base)
        if cut is not None:
            head, events = await self._cut_at(cut, key, fence, base, events)
            if head < 0:
                return Appended(Status.FENCED, base)
            base = head
        if not events and checkpoint is None:
            return Appended(Status.OK, base)
        answer = await super().append(key, fence, base, events, checkpoint, consumed)
        if checkpoint is not None and answer.status in (Status.OK, Status.DUP):
            self.checkpoints[key] = (answer.head, checkpoint)
        return answer

    async def finish(self, key: RunKey, fence: Fence, base: int, events: Sequence[bytes], ending: Ending) -> Appended:
        cut = self._due(key, base, len(events) - 1)
        if cut is not None:
            head, events = await self._cut_at(cut, key, fence, base, events)
            if head < 0:
                return Appended(Status.FENCED, base)
            base = head
        answer = await super().finish(key, fence, base, events, ending)
        if answer.status is Status.OK and ending.history is not None:
            self.cutter.pairs[key.run] = (ending.history, await self._derived(key, ending))
        return answer

    def _due(self, key: RunKey, base: int, count: int) -> Cut | None:
        held = self.claims.get(key)
        cut = self.cutter.of(held[0].spec.metadata) if held else None
        return cut if cut is not None and not cut.done and base < cut.at <= base + count else None

    async def _cut_at(
        self, cut: Cut, key: RunKey, fence: Fence, base: int, events: Sequence[bytes]
    ) -> tuple[int, Sequence[bytes]]:
        """Write up to the cut and carry it out; the head and what is left to write, or -1: the run is lost."""
        cut.done = True
        if events:
            answer = await super().append(key, fence, base, events[: cut.at - base])
            if answer.status is not Status.OK:
                return base, events
        _, deadline = self.claims[key]
        if cut.action is not None:
            await self._act(cut, key)
        if cut.how == "resumed":
            await super().release(key, fence)
        elif cut.how == "deadline":
            await asyncio.sleep(max(0.0, deadline - asyncio.get_running_loop().time()) + 0.05)
        elif cut.how == "told":
            await wait_event(self.taken[key], TAKEN_S)
        return (-1 if cut.how in LOST else cut.at), events[cut.at - base :]

    async def _act(self, cut: Cut, key: RunKey) -> None:
        assert cut.action is not None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(cut.action(key.run), self.cutter.loop))

    async def _derived(self, key: RunKey, ending: Ending) -> HistoryEntry:
        """What the store would have made of the same log, had the worker not said it."""
        events: list[dict[str, Any]] = []
        while page := (await super().read(key, len(events))).events:
            events += [decode_event(data) for data in page]
        claim, _ = self.claims[key]
        seq, native = self.checkpoints.get(key, (0, b""))
        completed = ending.state == "completed"
        tail = Digest(e for e in events if e["seq"] > seq).messages(completed=completed, user="")
        whole = Digest(events).messages(completed=completed, user=claim.spec.input)
        kind = claim.spec.kind if native else ""
        return HistoryEntry(key.run, ending.state, whole, kind, native, tail if native else [])


class FailingAgent:
    """An agent that breaks after as many events as its run's metadata says."""

    def __init__(self, agent: Agent) -> None:
        self.name, self.kind, self.resumable = agent.name, agent.kind, agent.resumable
        self._agent = agent

    async def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        left = ctx.metadata.get("fail_after", -1)
        events = self._agent.run(ctx)
        try:
            async for event in events:
                if left == 0:
                    raise RuntimeError("the agent broke")
                left -= 1
                yield event
        finally:
            await events.aclose()
