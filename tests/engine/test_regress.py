"""A worker that is not sure of its run: its store has less than it said, or is slow to say; its lease may be over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import (
    AgentEvent,
    Checkpoint,
    ModelRequested,
    PartDone,
    Result,
    RunContext,
    TextDelta,
    ToolCalled,
    ToolFinished,
)
from tests.engine.rig import QUICK, FunctionAgent, Rig


async def test_a_worker_that_is_ahead_of_its_store_writes_no_more_and_another_claim_goes_on() -> None:
    """Readers were shown those numbers with other content: only an attempt that begins where the store is may go on."""
    lost = asyncio.Event()
    attempts = []

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        attempts.append(ctx.attempt)
        part = ctx.first_part
        yield Checkpoint(b"here")
        yield TextDelta(part, f"attempt {ctx.attempt}")
        yield PartDone(part)
        yield Checkpoint(b"there")
        if ctx.attempt == 1:
            await lost.wait()
            yield TextDelta(part + 1, "never to be stored")
            yield Checkpoint(b"nowhere")
            raise AssertionError("it was let go on")
        yield Result(f"attempt {ctx.attempt}")

    settings = QUICK.model_copy(update={"lease_s": 0.5})
    async with Rig(FunctionAgent(work, resumable=True), settings=settings) as rig:
        key = await rig.start()
        await rig.until(key, "text.done")
        await _forget_last(rig.store, key)
        lost.set()
        record = await rig.end(key)
        events = await rig.events(key)
        lines = rig.lines.getvalue()
    assert attempts == [1, 2]
    assert (record.state, record.reason, record.output) == (State.COMPLETED, Reason.FINISHED, "attempt 2")
    assert "never to be stored" not in str(events)
    assert [line for line in lines.splitlines() if line.startswith("run_lost") and "status=gap" in line]


@pytest.mark.parametrize("event", [Checkpoint(b"asked"), ModelRequested(1, "m", 1)], ids=["tool", "model"])
async def test_nothing_new_begins_while_the_lease_may_be_lost(event: AgentEvent) -> None:
    """A tool that starts then may run twice at once: here, and at whoever has taken the run."""
    healthy, begun = [False], []

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield event
        begun.append(healthy[0])
        yield Result("done")

    async with Rig(FunctionAgent(work, resumable=True)) as rig:
        rig.worker._around = replace(rig.worker._around, healthy=lambda: healthy[0])
        key = await rig.start()
        async with asyncio.timeout(5):
            while ((await rig.worker.inspect(key)) or {}).get("waiting_on") != "lease" and not begun:
                await asyncio.sleep(0.01)
        assert begun == []
        healthy[0] = True
        record = await rig.end(key)
    assert (record.state, begun) == (State.COMPLETED, [True])


@pytest.mark.parametrize("by", ["another", "itself"])
async def test_who_has_lost_a_run_stops_working_on_it_whoever_has_it_now(by: str) -> None:
    """A tool that writes nothing for an hour would go on for an hour, beside the attempt that took its place."""
    left = []

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        try:
            if ctx.epoch == 1:
                yield Checkpoint(b"here")
                await asyncio.sleep(3600)
            yield Result("done")
        finally:
            left.append(ctx.epoch)

    async with Rig(FunctionAgent(work, resumable=True)) as rig:
        key = await rig.start()
        await rig.until(key, "run.started")
        if by == "another":
            rig.worker._accepting = False  # it is claimed elsewhere, or later
        claim = rig.worker._held()[0]
        await rig.store.release(claim.key, claim.fence)
        if by == "itself":
            assert (await rig.end(key)).output == "done"
        async with asyncio.timeout(5):
            while 1 not in left:
                await asyncio.sleep(0.01)
        assert [line for line in rig.lines.getvalue().splitlines() if line.startswith("run_lost")]


async def test_a_tired_worker_takes_no_new_run_until_its_threads_are_back() -> None:
    """A run that it took would get no thread for its tools; another worker, or its successor, has some."""
    why = ["4 tool threads are held"]

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield Result(ctx.input)

    async with Rig(FunctionAgent(work)) as rig:
        rig.worker.tired = lambda: why[0]
        key = await rig.start()
        assert not rig.worker._facts()["accepting"]
        seen = rig.worker._room(late=False)
        record = await rig.sessions.get(key)
        assert (seen, record.state) == (0, State.QUEUED)
        why[0] = ""
        assert (await rig.end(key)).state is State.COMPLETED


@pytest.mark.parametrize("leaves", [False, True], ids=["abandoned", "cannot say"])
async def test_an_agent_that_cannot_say_what_it_did_leaves_its_checkpoint_in_the_history(leaves: bool) -> None:
    """Its own form has what the log has cut: large results, images, what a provider signed."""
    released = asyncio.Event()

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield Checkpoint(b"native so far")
        yield TextDelta(ctx.first_part, "and said since")
        while not released.is_set():
            try:
                await asyncio.wait([asyncio.ensure_future(released.wait())], timeout=5)
            except asyncio.CancelledError:
                if leaves:
                    raise

    async with Rig(FunctionAgent(work, resumable=True)) as rig:
        key = await rig.start()
        await rig.until(key, "text.delta")
        await rig.sessions.stop(key, "tester")
        record = await rig.end(key)
        (entry,) = await rig.store.history("local", record.session)
        released.set()
    assert record.receipt is not None
    assert record.receipt["abandoned"] is not leaves
    assert (entry.native_kind, entry.native) == ("test", b"native so far")
    assert [(message.text, message.interrupted) for message in entry.tail] == [("and said since", True)]


async def test_a_tool_starts_only_after_the_store_has_its_call() -> None:
    """What has an effect is in the log before it has one: a crash in between must not leave it unknown."""
    answers, begun = asyncio.Event(), []

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ToolCalled("c1", "charge", {})
        yield Checkpoint(b"asked")
        begun.append(answers.is_set())
        yield ToolFinished("c1", "charge", "success", 1, 0, checkpoint=b"charged")
        begun.append(answers.is_set())
        yield Result("done")

    async with Rig(FunctionAgent(work, resumable=True), wrap=lambda store: _Slow(store, answers)) as rig:
        key = await rig.start()
        async with asyncio.timeout(5):
            while not rig.wrapped.held and not begun:
                await asyncio.sleep(0.01)
        assert begun == []
        answers.set()
        record = await rig.end(key)
        (last,) = [with_result for with_result in rig.wrapped.held if with_result == (["tool.finished"], b"charged")]
    assert (record.state, begun) == (State.COMPLETED, [True, True])
    assert rig.wrapped.held[0] == (["tool.called"], b"asked")
    assert last


async def test_a_model_is_slowed_down_by_a_store_that_does_not_answer_and_stop_is_not() -> None:
    """What nobody has acknowledged is held in memory: so much of it, and no more; and a stop needs no room there."""
    answers, said = asyncio.Event(), [0]

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield Checkpoint(b"held")
        for _ in range(1000):
            said[0] += 1
            yield TextDelta(ctx.first_part, "x" * 1024)
        yield Result("done")

    settings = QUICK.model_copy(update={"buffer_bytes": 65_536})
    async with Rig(FunctionAgent(work), settings=settings, wrap=lambda store: _Slow(store, answers, 3)) as rig:
        key = await rig.start()
        async with asyncio.timeout(5):
            while said[0] < 64:
                await asyncio.sleep(0.01)
        for _ in range(20):  # turns in which it would go on
            await asyncio.sleep(0.01)
        assert said[0] <= 66
        await rig.sessions.stop(key, "tester")
        async with asyncio.timeout(5):
            while (await rig.worker.inspect(key) or {"phase": "stopping"})["phase"] != "stopping":
                await asyncio.sleep(0.01)
        answers.set()
        record = await rig.end(key)
    assert (record.state, len(record.output or "")) == (State.CANCELLED, said[0] * 1024)


async def test_a_log_that_grows_beyond_its_bound_ends_its_run_by_that_name() -> None:
    """An agent in a loop that always has something to say would fill the disk of everybody."""

    async def work(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for n in range(10_000):
            yield TextDelta(ctx.first_part + n, "x" * 1024)
            yield Checkpoint(b"so far")

    async with Rig(FunctionAgent(work), settings=QUICK.model_copy(update={"log_bytes": 20_000})) as rig:
        record = await rig.end(await rig.start())
    assert (record.state, record.reason) == (State.FAILED, Reason.BUDGET)
    assert record.error is not None
    assert (record.error["code"], record.error["remedy"]) == ("log_bytes", "raise log_bytes, or ask for less")


class _Slow:
    """Says what is appended with which checkpoint, and acknowledges what has one only when `answers` is set."""

    def __init__(self, store: Any, answers: asyncio.Event, nth: int = 0) -> None:
        self._store = store
        self._nth = nth  # or the n-th append, and those after it
        self._count = 0
        self._answers = answers
        self.held: list[tuple[list[str], bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(
        self, key: Any, fence: Any, base: int, events: Any, checkpoint: Any = None, consumed: int = 0
    ) -> Any:
        self._count += 1
        if self._nth:
            if self._count >= self._nth:
                await asyncio.wait([asyncio.ensure_future(self._answers.wait())], timeout=5)
        elif checkpoint is not None:
            self.held.append(([decode_event(event)["type"] for event in events], checkpoint))
            await asyncio.wait([asyncio.ensure_future(self._answers.wait())], timeout=5)
        return await self._store.append(key, fence, base, events, checkpoint, consumed)


async def _forget_last(store: Any, key: RunKey) -> None:
    def regress(tx: Any) -> None:
        row = tx.one("SELECT n, head FROM runs WHERE id = ?", key.run)
        assert tx.run("DELETE FROM events WHERE run = ? AND seq = ?", row["n"], row["head"]) == 1
        tx.run("UPDATE runs SET head = head - 1 WHERE n = ?", row["n"])

    await store._writer.do("regress", regress)
