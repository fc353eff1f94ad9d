"""A run that waits for a decision, seen by the engine: parked once, decided once, and ended whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import (
    AgentEvent,
    Checkpoint,
    Request,
    Result,
    RunContext,
    Steered,
    TextDelta,
    ToolCalled,
    ToolFinished,
    Waiting,
)
from tests.engine.faults import FaultyStore
from tests.engine.rig import QUICK, FunctionAgent, Rig

YES = [{"call": "c1", "approve": True}]


async def _asks(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    """Asks about one call, then makes it."""
    if not ctx.decisions:
        yield TextDelta(ctx.first_part, "may I? ")
        yield ToolCalled("c1", "t", {})
        yield Checkpoint(b"1")
        yield Waiting([Request("c1", "t", {})], b"2")
        raise AssertionError("read on after it asked")
    for item in await ctx.inbox():
        yield Steered(item.n, item.input, b"3")
    yield ToolFinished("c1", "t", "success", str(ctx.decisions[0]["approve"]), 1, checkpoint=b"4")
    yield Result("done")


async def _waiting(rig: Rig, key: RunKey) -> None:
    await rig.until(key, "run.waiting")
    while (await rig.sessions.get(key)).state is not State.WAITING:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("operation", ["park", "inbox", "append", "finish"])
async def test_a_waiting_run_survives_any_store_call_without_an_answer(operation: str, fault: str) -> None:
    """An unknown outcome of a park is no reason to ask twice, nor to work on."""

    def decide(name: str, n: int) -> str:
        return fault if name == operation and n == 1 else ""

    async with Rig(FunctionAgent(_asks, resumable=True), wrap=lambda s: FaultyStore(s, decide)) as rig:
        key = await rig.start()
        await _waiting(rig, key)
        await rig.sessions.steer(key, "more")
        await rig.sessions.decide(key, YES)
        record = await rig.end(key)
        types = [event["type"] for event in await rig.events(key)]
    assert (record.state, record.output) == (State.COMPLETED, "done")
    for kind in ("run.waiting", "run.resumed", "steered", "tool.called", "tool.finished"):
        assert types.count(kind) == 1, types


async def test_a_run_that_nobody_decides_about_fails_at_its_approval_deadline() -> None:
    """Its own clock, a code of its own, a receipt that claims nothing was running; the session goes on."""
    settings = QUICK.model_copy(update={"approval_deadline_s": 0.3})
    async with Rig(FunctionAgent(_asks, resumable=True), settings=settings) as rig:
        key = await rig.start(session="s")
        record = await rig.end(key)
        with pytest.raises(HoldfastError) as late:
            await rig.sessions.decide(key, YES)
        (entry,) = await rig.store.history("local", "s")
    assert (record.state, record.reason) == (State.FAILED, Reason.DEADLINE)
    assert record.error is not None
    assert record.error["code"] == "approval_deadline"
    assert record.receipt is not None
    assert record.receipt["tools"] == [{"call": "c1", "name": "t", "ended": "cancelled"}]
    assert record.receipt["abandoned"] is False
    assert late.value.code == "late_decision"
    assert [message.role for message in entry.messages] == ["user", "assistant", "tool"]


async def test_a_stop_that_comes_while_it_parks_ends_the_run() -> None:
    """[MC] a parked run with the flag set would wait for a decision that no longer matters."""

    class StopsFirst:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

        async def park(self, key: RunKey, *rest: Any) -> Any:
            await self._store.request_stop(key, Reason.STOPPED, "client")
            return await self._store.park(key, *rest)

    async with Rig(FunctionAgent(_asks, resumable=True), wrap=StopsFirst) as rig:
        key = await rig.start()
        record = await rig.end(key)
        types = [event["type"] for event in await rig.events(key)]
    assert (record.state, record.reason) == (State.CANCELLED, Reason.STOPPED)
    assert "run.waiting" not in types
    assert types.count("tool.finished") == 1


async def test_the_deadline_stands_still_while_a_person_thinks() -> None:
    """Else a run with ten minutes would not outlive a lunch."""
    async with Rig(FunctionAgent(_asks, resumable=True)) as rig:
        key = await rig.start(deadline_s=0.6)
        await _waiting(rig, key)
        await asyncio.sleep(0.9)
        await rig.sessions.decide(key, YES)
        assert (await rig.end(key)).state is State.COMPLETED


async def test_requests_of_any_size_are_told() -> None:
    """What does not fit into an event would end the run; cut and marked, it can be decided."""

    async def asks(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        if not ctx.decisions:
            yield Waiting(
                [Request(f"c{n}", "t", {"text": "x" * 60_000}, metadata={"m": "y" * 60_000}) for n in range(8)]
            )
        yield Result("done")

    async with Rig(FunctionAgent(asks)) as rig:
        key = await rig.start()
        await _waiting(rig, key)
        requests = (await rig.until(key, "run.waiting"))["requests"]
        assert all(request["args"]["truncated"] for request in requests)
        await rig.sessions.decide(key, [{"call": request["call"], "approve": True} for request in requests])
        assert (await rig.end(key)).output == "done"


async def test_a_run_that_asks_nothing_takes_no_decision() -> None:
    """It says what is wrong, and goes on."""

    async def works(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        await asyncio.sleep(0.3)
        yield Result("done")

    async with Rig(FunctionAgent(works)) as rig:
        key = await rig.start()
        await rig.until(key, "run.started")
        with pytest.raises(HoldfastError) as refused:
            await rig.sessions.decide(key, YES)
        assert refused.value.code == "invalid_request"
        with pytest.raises(HoldfastError) as other:
            await rig.sessions.decide(RunKey("other", key.run), YES)
        assert other.value.code == "unknown_run"
        assert (await rig.end(key)).state is State.COMPLETED


async def test_a_late_decision_is_judged_by_the_events_and_not_by_what_a_tool_was_called_with() -> None:
    """Arguments may look like an event of the log; a decision about such a run is refused, and nothing breaks."""

    async def works(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for n, kind in enumerate(("run.waiting", "run.resumed")):
            yield ToolCalled(f"c{n}", "t", {"type": kind})
            yield ToolFinished(f"c{n}", "t", "success", "done", 1)
        yield Result("done")

    async with Rig(FunctionAgent(works)) as rig:
        key = await rig.start()
        await rig.end(key)
        with pytest.raises(HoldfastError) as late:
            await rig.sessions.decide(key, YES)
        assert late.value.code == "late_decision"


async def _asks_twice(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    """Asks about two calls at once, then says what was decided."""
    if not ctx.decisions:
        for call in ("c1", "c2"):
            yield ToolCalled(call, "t", {})
        yield Checkpoint(b"1")
        yield Waiting([Request("c1", "t", {}), Request("c2", "t", {})], b"2")
    said = [f"{each['call']} {each['approve']}" for each in ctx.decisions]
    for call in ("c1", "c2"):
        yield ToolFinished(call, "t", "success", "done", 1, checkpoint=b"3")
    yield Result(", ".join(said))


NO_C2 = [{"call": "c2", "approve": False}]


async def test_decisions_may_come_one_after_the_other() -> None:
    """Two people, or one who thinks about the second for an hour: until now the first decision was refused."""
    async with Rig(FunctionAgent(_asks_twice)) as rig:
        key = await rig.start()
        await _waiting(rig, key)
        record = await rig.sessions.decide(key, NO_C2, partly=True)
        assert record.state is State.WAITING
        assert await rig.sessions.open_calls(record) == ["c1"]
        again = await rig.sessions.decide(key, NO_C2, partly=True)
        assert again.seq == record.seq, "once more is no other decision"
        with pytest.raises(HoldfastError) as late:
            await rig.sessions.decide(key, [{"call": "c2", "approve": True}], partly=True)
        assert late.value.code == "late_decision"
        with pytest.raises(HoldfastError) as unknown:
            await rig.sessions.decide(key, [{"call": "c3", "approve": True}], partly=True)
        assert unknown.value.code == "invalid_request"
        await rig.sessions.decide(key, YES, partly=True)
        ended = await rig.end(key)
        assert (ended.state, ended.output) == (State.COMPLETED, "c1 True, c2 False")
        assert (await rig.sessions.decide(key, NO_C2, partly=True)).state is State.COMPLETED
        types = [e["type"] for e in await rig.events(key)]
        assert (types.count("run.decided"), types.count("run.resumed")) == (1, 1)


async def test_two_who_decide_at_once_are_both_heard() -> None:
    """Each was told that the decision is kept; neither may be lost, and the run goes on once."""
    async with Rig(FunctionAgent(_asks_twice)) as rig:
        key = await rig.start()
        await _waiting(rig, key)
        await asyncio.gather(*(rig.sessions.decide(key, each, partly=True) for each in (YES, NO_C2, YES)))
        ended = await rig.end(key)
        assert ended.output == "c1 True, c2 False"
        assert [e["type"] for e in await rig.events(key)].count("run.resumed") == 1


async def test_a_run_of_which_a_part_is_decided_still_ends() -> None:
    """P1: it waits like any other: a stop ends it, and the receipt has both calls, of which none ran."""
    async with Rig(FunctionAgent(_asks_twice)) as rig:
        key = await rig.start()
        await _waiting(rig, key)
        await rig.sessions.decide(key, YES, partly=True)
        await rig.sessions.stop(key, "test")
        ended = await rig.end(key)
        assert (ended.state, ended.reason) == (State.CANCELLED, Reason.STOPPED)
        assert ended.receipt is not None
        assert [(each["call"], each["ended"]) for each in ended.receipt["tools"]] == [
            ("c1", "cancelled"),
            ("c2", "cancelled"),
        ]
        assert (await rig.sessions.decide(key, YES, partly=True)).state is State.CANCELLED
        with pytest.raises(HoldfastError) as late:
            await rig.sessions.decide(key, NO_C2, partly=True)
        assert late.value.code == "late_decision"
