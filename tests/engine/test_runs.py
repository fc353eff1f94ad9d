"""The life of a run under the engine, with agents that behave, misbehave and refuse to end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

from holdfast.domain.events import EventType
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.agent import (
    AgentEvent,
    Checkpoint,
    ModelRequested,
    PartDone,
    Result,
    RunContext,
    TextDelta,
    ToolArgs,
    ToolCalled,
    ToolFinished,
)
from tests.engine.rig import QUICK, FunctionAgent, Rig


async def _hello(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    yield TextDelta(ctx.first_part, "hello ")
    yield TextDelta(ctx.first_part, ctx.input)
    yield Result(f"hello {ctx.input}")


async def _for_ever(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    yield TextDelta(ctx.first_part, "part")
    await asyncio.sleep(3600)
    yield Result("never")


async def test_a_run_is_created_started_and_completed_with_its_output() -> None:
    """The main job: input in, log contiguous, exactly one terminal event, output on the record."""
    async with Rig(FunctionAgent(_hello)) as rig:
        key = await rig.start("world")
        record = await rig.end(key)
        events = await rig.events(key)
    assert (record.state, record.reason, record.output) == (State.COMPLETED, Reason.FINISHED, "hello world")
    kinds = [e["type"] for e in events]
    assert kinds[0:2] == ["run.created", "run.started"]
    assert kinds[-2:] == ["text.done", "run.completed"]
    text = "".join(e["text"] for e in events if e["type"] == "text.delta")
    assert text == events[-2]["text"] == "hello world"


async def test_stop_ends_a_running_run_with_a_receipt_and_its_partial() -> None:
    """P2: Stop stops the work and says so; what was shown is kept."""
    async with Rig(FunctionAgent(_for_ever)) as rig:
        key = await rig.start()
        await rig.until(key, EventType.TEXT_DELTA)
        await rig.sessions.stop(key, "tester")
        record = await rig.end(key)
        events = await rig.events(key)
        history = await rig.store.history("local", record.session)
    assert (record.state, record.reason) == (State.CANCELLED, Reason.STOPPED)
    assert [e["type"] for e in events][-2:] == ["run.stopping", "run.cancelled"]
    assert events[-1]["partial"] == "part"
    assert events[-1]["receipt"]["by"] == "worker"
    assert events[-1]["receipt"]["abandoned"] is False
    assert [(m.role, m.text, m.interrupted) for m in history[0].messages] == [
        ("user", "hello", False),
        ("assistant", "part", True),
    ]


async def test_an_agent_that_swallows_cancellation_is_abandoned_after_grace() -> None:
    """It cannot hold up the session, and nothing it does later reaches the log."""
    released = asyncio.Event()

    async def stubborn(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ToolCalled("c1", "deaf", {})
        ctx.probe.tool_started("c1", "deaf")
        while not released.is_set():
            try:
                await asyncio.wait([asyncio.ensure_future(released.wait())], timeout=60)
            except asyncio.CancelledError:
                continue
        ctx.probe.tool_ended("c1")
        yield TextDelta(ctx.first_part, "too late")

    async with Rig(FunctionAgent(stubborn), FunctionAgent(_hello, "quick")) as rig:
        key = await rig.start(session="s")
        await rig.until(key, EventType.TOOL_CALLED)
        began = time.monotonic()
        await rig.sessions.stop(key, "tester")
        record = await rig.end(key)
        took = time.monotonic() - began
        follow = await rig.end(await rig.start(session="s", agent="quick"))
        released.set()
        await asyncio.sleep(0.05)
        events = await rig.events(key)
    assert took < QUICK.stop_grace_s + 1.0
    assert record.receipt is not None
    assert record.receipt["abandoned"] is True
    assert record.receipt["tools"] == [{"call": "c1", "name": "deaf", "ended": "abandoned"}]
    assert follow.state is State.COMPLETED
    assert events[-1]["type"] == "run.cancelled"
    assert "too late" not in str(events)


async def test_a_prompt_supersedes_the_one_before_in_strict_order() -> None:
    """P4 and document 4: A's terminal event is in the log, and said, before B starts."""
    async with Rig(FunctionAgent(_for_ever), FunctionAgent(_hello, "quick")) as rig:
        first = await rig.start("A", session="s")
        await rig.until(first, EventType.TEXT_DELTA)
        second = await rig.start("B", session="s", agent="quick")
        ended = await rig.end(first)
        assert (await rig.end(second)).output == "hello B"
        log = rig.lines.getvalue()
    assert (ended.state, ended.reason) == (State.CANCELLED, Reason.SUPERSEDED)
    order = [
        f"stream_cancelled at=.*run={first.run}.*reason=superseded by={second.run}",
        f"prev_stream_finished_cleanly at=.*run={first.run}",
        f"stream_end at=.*run={first.run}",
        f"stream_start at=.*run={second.run}",
    ]
    words = [line.split(" ")[0] for line in log.splitlines() if first.run in line or second.run in line]
    assert words[: len(words)] == [
        "stream_requested",
        "stream_start",
        "stream_requested",
        "stream_cancelled",
        "prev_stream_finished_cleanly",
        "stream_end",
        "cleanup_done",
        "stream_start",
        "stream_end",
        "cleanup_done",
    ], (order, log)


async def test_an_agent_that_raises_fails_its_run_with_type_and_message() -> None:
    """P8: every exception is a terminal event with a code and a cause."""

    async def broken(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield TextDelta(ctx.first_part, "so far")
        raise ValueError("the bank is closed")

    async with Rig(FunctionAgent(broken)) as rig:
        record = await rig.end(await rig.start())
    assert (record.state, record.reason, record.output) == (State.FAILED, Reason.AGENT_ERROR, "so far")
    assert record.error is not None
    assert (record.error["code"], record.error["cause"]) == ("agent_error", "ValueError")
    assert "the bank is closed" in record.error["message"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_an_agent_cannot_take_the_loop_down_with_it(error: BaseException) -> None:
    """SystemExit in a tool's code ends one run, not the worker."""

    async def leaving(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield TextDelta(ctx.first_part, "x")
        raise error

    async with Rig(FunctionAgent(leaving), FunctionAgent(_hello, "quick")) as rig:
        record = await rig.end(await rig.start())
        follow = await rig.end(await rig.start(agent="quick"))
    assert (record.state, record.reason) == (State.FAILED, Reason.AGENT_ERROR)
    assert follow.state is State.COMPLETED


async def test_a_run_ends_at_its_deadline() -> None:
    """P1: terminal within deadline + grace + 1.5 s, with what was shown."""
    async with Rig(FunctionAgent(_for_ever)) as rig:
        began = time.monotonic()
        record = await rig.end(await rig.start(deadline_s=0.4))
        took = time.monotonic() - began
    assert (record.state, record.reason, record.output) == (State.FAILED, Reason.DEADLINE, "part")
    assert took < 0.4 + QUICK.stop_grace_s + 1.5


async def test_a_blocked_loop_does_not_keep_a_stopped_run_alive() -> None:
    """A stop that the worker's loop does not take up is finished by the reaper of another loop."""
    seen: list[str] = []

    async def blocking(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield TextDelta(ctx.first_part, "x")
        time.sleep(2.5)
        yield TextDelta(ctx.first_part, "y")
        yield Result("z")

    async with Rig(FunctionAgent(blocking)) as rig:
        started = asyncio.Event()

        def elsewhere() -> None:
            asyncio.run(_stop_from_another_loop(rig, key_holder, seen))

        key_holder: list = []
        key = await rig.start()
        key_holder.append(key)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        record = await rig.end(key)
        thread.join(5)
        started.set()
    assert seen == ["cancelled reaper"]
    assert record.reason is Reason.STOPPED


async def _stop_from_another_loop(rig: Rig, keys: list, seen: list[str]) -> None:
    await asyncio.sleep(0.3)
    await rig.store.request_stop(keys[0], Reason.STOPPED, "tester")
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        await rig.store.reap(10, 500)
        record = await rig.store.get(keys[0])
        if record and record.state.terminal and record.receipt:
            seen.append(f"{record.state} {record.receipt['by']}")
            return
        await asyncio.sleep(0.02)


async def test_a_resumed_attempt_takes_back_what_came_after_its_checkpoint() -> None:
    """races.md: run.started, then attempt.discarded, before anything else; finished tools are not run again."""
    attempts: list[bytes | None] = []

    async def stepping(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        attempts.append(ctx.checkpoint)
        if ctx.checkpoint is None:
            yield ModelRequested(1, "m", 1)
            yield TextDelta(0, "I will look. ")
            yield PartDone(0)
            yield ToolCalled("c1", "look", {"at": "it"})
            yield Checkpoint(b"asked")
            yield ToolFinished("c1", "look", "success", 42, 1, checkpoint=b"looked")
            yield TextDelta(1, "Hello wor")
            await asyncio.sleep(3600)
        yield TextDelta(ctx.first_part, "It is 42.")
        yield Result("It is 42.")

    async with Rig(FunctionAgent(stepping, resumable=True)) as rig:
        key = await rig.start()
        while not any(e["type"] == "text.delta" and e["part"] == 1 for e in await rig.events(key)):
            await asyncio.sleep(0.01)
        claim = rig.worker._held()[0]
        await rig.store.release(claim.key, claim.fence)
        record = await rig.end(key)
        events = await rig.events(key)
        history = await rig.store.history("local", record.session)
    assert attempts == [None, b"looked"]
    second = [e for e in events if e.get("type") == "run.started"][1]["seq"]
    discarded = events[second]
    assert (discarded["type"], discarded["parts"], discarded["calls"]) == ("attempt.discarded", [1], [])
    assert record.state is State.COMPLETED
    assert [m.text for m in history[0].messages if m.role == "assistant"] == ["I will look. ", "It is 42."]
    assert [m.result for m in history[0].messages if m.role == "tool"] == [42]


async def test_a_resumed_attempt_takes_back_calls_that_nobody_will_finish() -> None:
    """Half-written arguments, and a call whose checkpoint was lost: a card that spins for ever is a lie."""
    attempts = []

    async def calling(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        attempts.append(ctx.attempt)
        if ctx.checkpoint is None:
            yield Checkpoint(b"begun")
            yield ToolCalled("c1", "look", {})
            yield ToolArgs("c2", "look", '{"at":')
            await asyncio.sleep(3600)
        yield Result("done")

    async with Rig(FunctionAgent(calling, resumable=True)) as rig:
        key = await rig.start()
        await rig.until(key, "tool.args")
        claim = rig.worker._held()[0]
        await rig.store.release(claim.key, claim.fence)
        await rig.end(key)
        events = await rig.events(key)
    (discarded,) = [e for e in events if e["type"] == "attempt.discarded"]
    assert discarded["calls"] == ["c1", "c2"]
    assert [e["type"] for e in events if e["type"] == "tool.finished"] == []


async def test_queued_prompts_run_in_order_and_can_be_stopped_in_the_queue() -> None:
    """F24: the queue drains first in first out; a stopped one never starts."""
    gate = asyncio.Event()

    async def gated(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        await asyncio.wait([asyncio.ensure_future(gate.wait())], timeout=5)
        yield TextDelta(ctx.first_part, ctx.input)
        yield Result(ctx.input)

    async with Rig(FunctionAgent(gated)) as rig:
        keys = [await rig.start(f"p{n}", session="s", on_busy=Policy.ENQUEUE) for n in range(4)]
        await rig.sessions.stop(keys[2], "tester")
        gate.set()
        records = [await rig.end(key) for key in keys]
        history = await rig.store.history("local", "s")
    assert [r.state for r in records] == [State.COMPLETED, State.COMPLETED, State.CANCELLED, State.COMPLETED]
    assert records[0].ended_at <= records[1].ended_at <= records[3].ended_at  # type: ignore[operator]
    assert [e.messages[0].text for e in history] == ["p0", "p1", "p2", "p3"]


async def test_a_call_that_its_agent_forgot_is_closed_when_the_run_completes() -> None:
    """F57: every tool.called has its tool.finished, however the run ends; a card that spins for ever is a lie."""

    async def forgetful(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ToolCalled("c1", "look", {})
        yield Result("done")

    async with Rig(FunctionAgent(forgetful)) as rig:
        key = await rig.start()
        record = await rig.end(key)
        events = await rig.events(key)
    assert record.state is State.COMPLETED
    finished = [e for e in events if e["type"] == "tool.finished"]
    assert [(e["call"], e["outcome"]) for e in finished] == [("c1", "interrupted")]
