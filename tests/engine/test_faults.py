"""Every part fails once, in each of its calls: the run still ends, once, with a code and a cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import AgentEvent, Checkpoint, Result, RunContext, TextDelta, ToolCalled, ToolFinished
from tests.engine.faults import FaultyStore
from tests.engine.rig import QUICK, FunctionAgent, Rig


async def _steps(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    """An agent with every kind of write: deltas, a barrier, a checkpoint with a result."""
    if ctx.checkpoint is None:
        yield TextDelta(ctx.first_part, "one ")
        await asyncio.sleep(0.03)
        yield TextDelta(ctx.first_part, "two ")
        yield ToolCalled("c1", "t", {})
        yield Checkpoint(b"1")
        yield ToolFinished("c1", "t", "success", "r", 1, checkpoint=b"2")
        await asyncio.sleep(0.03)
    yield TextDelta(ctx.first_part + 5, "three")
    yield Result("three")


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("operation", ["append", "finish", "claim", "history", "read", "renew", "reap"])
async def test_a_run_survives_any_store_call_without_an_answer(operation: str, nth: int, fault: str) -> None:
    """StoreUnavailable means unknown: the call is repeated, and nothing is lost or doubled."""

    def decide(name: str, n: int) -> str:
        return fault if name == operation and n == nth else ""

    async with Rig(FunctionAgent(_steps, resumable=True), wrap=lambda s: FaultyStore(s, decide)) as rig:
        key = await rig.start()
        record = await rig.end(key)
        events = await rig.events(key)
        follow = await rig.end(await rig.start())
    assert follow.state is State.COMPLETED
    assert [e["type"] for e in events].count("tool.finished") == 1
    assert (record.state, record.output) == (State.COMPLETED, "three")


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("operation", ["append", "finish", "claim", "history", "renew", "reap", "next_due_ms"])
async def test_a_fault_of_ours_in_any_part_ends_as_a_terminal_event(operation: str, nth: int) -> None:
    """P8: no background task dies in silence; a fault in a loop is said, and the loop begins again."""

    def decide(name: str, n: int) -> str:
        return "raise" if name == operation and n == nth else ""

    async with Rig(FunctionAgent(_steps), wrap=lambda s: FaultyStore(s, decide)) as rig:
        key = await rig.start()
        record = await rig.end(key)
        await rig.events(key)
        follow = await rig.end(await rig.start())
        injected = rig.wrapped.injected
        lines = rig.lines.getvalue()
    assert follow.state.terminal
    if record.state is State.FAILED:
        assert record.error is not None
        assert record.error["code"] in ("internal", "worker_lost")
        assert record.error["remedy"]
    if injected:
        assert "injected fault of ours" in lines or (record.error and "injected" in record.error["message"])


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_batch_of_unknown_outcome_is_repeated_before_the_run_is_ended(fault: str) -> None:
    """After an outage the frozen batch comes first, byte for byte: nothing is lost, doubled or out of order."""
    failing = [0]

    def decide(name: str, n: int) -> str:
        if name == "append" and n >= 3 and failing[0] < 8:
            failing[0] += 1
            return fault
        return ""

    settings = QUICK.model_copy(update={"store_outage_s": 0.6})
    async with Rig(FunctionAgent(_steps), wrap=lambda s: FaultyStore(s, decide), settings=settings) as rig:
        key = await rig.start()
        record = await rig.end(key)
        events = await rig.events(key)
    assert failing[0] >= 2
    assert (record.state, record.reason) == (State.FAILED, Reason.STORE_ERROR)
    assert record.receipt is not None
    assert record.receipt["by"] == "worker"
    assert record.output == "".join(e["text"] for e in events if e["type"] == "text.delta")
