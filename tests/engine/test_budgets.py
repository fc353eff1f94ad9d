"""Budgets end a run before its next call, with both numbers and a remedy, and lose nothing that is finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.domain.runs import Reason, State
from holdfast.ports.agent import (
    AgentEvent,
    Checkpoint,
    ModelRequested,
    ModelResponded,
    PartDone,
    Result,
    RunContext,
    TextDelta,
    ToolAsks,
    ToolCalled,
    ToolFinished,
    ToolResponded,
)
from holdfast.ports.store import RunRecord
from holdfast.tools import ToolPool
from tests.engine.rig import QUICK, FunctionAgent, Rig

USED = {"input_tokens": 30, "output_tokens": 10}
PRICES = {"m": {"input": 1_000_000, "output": 2_000_000}}  # 1 and 2 a token
TURNS = 5


class Caller:
    """Calls a model and a tool in turn, and keeps what it did."""

    def __init__(self, usage: dict[str, Any] | None = None, model: str = "m") -> None:
        self.did: list[str] = []
        self.usage = USED if usage is None else usage
        self.model = model

    async def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        for n in range(1, TURNS + 1):
            yield ModelRequested(n, self.model, 1)
            self.did.append(f"model {n}")
            yield TextDelta(n, f"step {n}. ")
            yield PartDone(n)
            yield ModelResponded(n, self.model, "tool_calls", self.usage, 1, 1)
            if n == TURNS:
                break
            yield ToolCalled(f"c{n}", "look", {})
            self.did.append(f"tool {n}")
            yield ToolFinished(f"c{n}", "look", "success", f"seen {n}", 1)
        yield Result("done")


async def ended(agent: Caller, **settings: Any) -> tuple[RunRecord, list[dict[str, Any]]]:
    rules = QUICK.model_validate({**QUICK.model_dump(), **settings})
    async with Rig(FunctionAgent(agent.run), settings=rules) as rig:
        key = await rig.start()
        record = await rig.end(key)
        return record, await rig.events(key)


@pytest.mark.parametrize(
    ("settings", "did", "numbers"),
    [
        ({"budget_steps": 2}, ["model 1", "tool 1", "model 2", "tool 2"], ("2 model calls", "budget_steps is 2")),
        ({"budget_tool_calls": 1}, ["model 1", "tool 1", "model 2"], ("tool call 2", "budget_tool_calls is 1")),
        ({"budget_tokens": 80}, ["model 1", "tool 1", "model 2"], ("80 tokens", "budget_tokens is 80")),
        (
            {"budget_cost": 60, "prices": PRICES},
            ["model 1", "tool 1", "model 2"],
            ("100 is spent", "budget_cost is 60"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_budget_ends_the_run_before_its_next_call(
    settings: dict[str, Any], did: list[str], numbers: tuple[str, str]
) -> None:
    """F9: the agent is not asked to agree; it is a plain generator here, and never gets to its next call."""
    agent = Caller()
    record, events = await ended(agent, **settings)
    code = next(iter(settings))
    assert agent.did == did
    assert (record.state, record.reason) == (State.FAILED, Reason.BUDGET)
    assert record.error is not None
    assert record.error["code"] == code
    assert all(number in record.error["message"] for number in numbers), record.error
    assert code in record.error["remedy"]
    assert record.output == "step 1. step 2. "
    assert record.usage["input_tokens"] == 60
    called = [e["call"] for e in events if e["type"] == "tool.called"]
    assert [e["call"] for e in events if e["type"] == "tool.finished"] == called, "each call has its end"


async def test_an_answer_that_reaches_a_budget_is_kept() -> None:
    """What is finished is not thrown away for what it has cost."""
    record, _ = await ended(Caller(), budget_tokens=TURNS * 40, budget_steps=TURNS, budget_tool_calls=TURNS - 1)
    assert (record.state, record.output) == (State.COMPLETED, "done")


async def test_zero_is_no_limit() -> None:
    """Each budget can be switched off."""
    record, _ = await ended(Caller(), budget_steps=0)
    assert record.state is State.COMPLETED


async def test_cost_is_in_the_usage_of_every_response_and_of_the_record() -> None:
    """By the price of the model that answered; the reaper, which knows no prices, finds it in the log."""
    record, events = await ended(Caller(), prices=PRICES)
    assert [e["usage"]["cost"] for e in events if e["type"] == "model.responded"] == [50.0] * TURNS
    assert record.usage["cost"] == events[-1]["usage"]["cost"] == 50.0 * TURNS


async def test_what_a_budget_cannot_count_is_said_once() -> None:
    """A model without a price, and one without a usage: a budget that silently counts nothing would be a lie."""
    record, events = await ended(Caller(), budget_cost=1)
    said = [(e["what"], e["why"]) for e in events if e["type"] == "degraded"]
    assert record.state is State.COMPLETED
    assert [what for what, _ in said] == ["budget_cost"]
    assert "m has no price" in said[0][1]
    assert "cost" not in record.usage


async def test_tokens_that_nobody_reports_are_counted_by_what_was_streamed() -> None:
    """`step 1. ` has eight characters: two tokens, about. The message says how they were counted."""
    agent = Caller(usage={})
    record, events = await ended(agent, budget_tokens=4)
    assert agent.did == ["model 1", "tool 1", "model 2"]
    assert record.error is not None
    assert "4 tokens are used, 4 of them by the length of what was streamed" in record.error["message"]
    assert [e["what"] for e in events if e["type"] == "degraded"] == ["budget_tokens"]
    assert record.usage == {"requests": 2, "unreported": 2}


async def test_counts_survive_a_resume() -> None:
    """A crash must not give a run its budget anew: what was used is in its log."""
    asked: list[int] = []

    async def stepping(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        first = 1 if ctx.checkpoint is None else 3
        for n in range(first, 9):
            yield ModelRequested(n, "m", 1)
            asked.append(n)
            yield TextDelta(ctx.first_part + n, f"{n} ")
            yield ModelResponded(n, "m", "stop", USED, 1, 1)
            yield Checkpoint(str(n).encode())
            if n == 2 and ctx.checkpoint is None:
                await asyncio.sleep(3600)
        yield Result("never")

    settings = QUICK.model_copy(update={"budget_steps": 3})
    async with Rig(FunctionAgent(stepping, resumable=True), settings=settings) as rig:
        key = await rig.start()
        while sum(e["type"] == "model.responded" for e in await rig.events(key)) < 2:
            await asyncio.sleep(0.01)
        claim = rig.worker._held()[0]
        await rig.store.release(claim.key, claim.fence)
        record = await rig.end(key)
    assert asked == [1, 2, 3]
    assert record.error is not None
    assert record.error["code"] == "budget_steps"
    assert record.usage == {"requests": 3, "input_tokens": 90, "output_tokens": 30}


async def test_a_run_that_the_reaper_ends_has_its_usage() -> None:
    """F56: also where nobody is left who knew it, from the log alone; the open response is said to be unknown."""

    async def stuck(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        yield ModelRequested(1, "m", 1)
        yield ModelResponded(1, "m", "stop", USED, 1, 1)
        yield ModelRequested(2, "m", 1)
        yield TextDelta(ctx.first_part, "half")
        await asyncio.sleep(3600)

    settings = QUICK.model_validate({**QUICK.model_dump(), "prices": PRICES})
    async with Rig(FunctionAgent(stuck), settings=settings) as rig:
        key = await rig.start()
        await rig.until(key, "text.delta")
        await rig.store.bury("w-test", key)
        record = await rig.end(key)
        events = await rig.events(key)
    expected = {"requests": 2, "input_tokens": 30, "output_tokens": 10, "cost": 50.0, "unreported": 1}
    assert record.receipt is not None
    assert record.receipt["by"] == "reaper"
    assert record.usage == events[-1]["usage"] == expected
    assert record.output == events[-1]["partial"] == "half", "nor is what was shown"


async def test_an_agent_that_will_not_leave_is_abandoned_when_its_budget_is_spent() -> None:
    """`finally: await cleanup()` may hang; the end must not wait for the deadline then."""
    released = asyncio.Event()

    async def clinging(ctx: RunContext) -> AsyncIterator[AgentEvent]:
        try:
            for n in range(9):
                yield ModelRequested(n, "m", 1)
                yield ToolCalled(f"c{n}", "look", {})
        finally:
            while not released.is_set():
                try:
                    await asyncio.wait([asyncio.ensure_future(released.wait())], timeout=60)
                except asyncio.CancelledError:
                    continue

    async with Rig(FunctionAgent(clinging), settings=QUICK.model_copy(update={"budget_steps": 1})) as rig:
        record = await rig.end(await rig.start())
        released.set()
        events = await rig.events(record.key)
    assert record.error is not None
    assert record.error["code"] == "budget_steps"
    assert record.receipt is not None
    assert record.receipt["abandoned"] is True
    assert [e["outcome"] for e in events if e["type"] == "tool.finished"] == ["interrupted"]


def add(a: int, b: int) -> int:
    """A tool that must not run."""
    added.append(a + b)
    return a + b


added: list[int] = []


async def test_calls_over_the_budget_are_told_of_and_never_start() -> None:
    """The model asked for three at once, two are allowed: none starts, each has its end, the next prompt works."""

    async def stream(messages: list[Any], info: AgentInfo) -> AsyncIterator[Any]:
        if "calm" in str(messages[-1]):
            yield "calm"
        else:
            yield {n: DeltaToolCall(name="add", json_args=f'{{"a": {n}, "b": 1}}') for n in range(3)}

    settings = QUICK.model_copy(update={"budget_tool_calls": 2})
    agent = Agent(FunctionModel(stream_function=stream), tools=[add])
    pool = ToolPool(2, 1.0, 2)
    added.clear()
    async with Rig(PydanticAgent(agent, "test", settings, pool), settings=settings) as rig:  # type: ignore[arg-type]
        key = await rig.start(session="s")
        record = await rig.end(key)
        events = await rig.events(key)
        again = await rig.end(await rig.start("calm", session="s"))
        history = await rig.store.history("local", "s")
    pool.close(1.0)
    assert record.error is not None
    assert record.error["code"] == "budget_tool_calls"
    assert added == []
    calls = [e["call"] for e in events if e["type"] == "tool.called"]
    ends = [(e["call"], e["outcome"]) for e in events if e["type"] == "tool.finished"]
    assert len(calls) == 3
    assert ends == [(call, "interrupted") for call in calls]
    assert [m.role for m in history[0].messages] == ["user", "assistant", "tool", "tool", "tool"]
    assert (again.state, again.output) == (State.COMPLETED, "calm")


@pytest.mark.slow
@pytest.mark.timeout(40)
async def test_the_librarys_own_limit_does_not_come_before_ours() -> None:
    """pydantic-ai ends a run after 50 requests unless told otherwise; `budget_steps` is what the operator chose."""

    async def stream(messages: list[Any], info: AgentInfo) -> AsyncIterator[Any]:
        yield {0: DeltaToolCall(name="add", json_args=f'{{"a": {len(messages)}, "b": 1}}')}

    settings = QUICK.model_copy(update={"budget_steps": 55})
    agent = Agent(FunctionModel(stream_function=stream), tools=[add])
    pool = ToolPool(2, 1.0, 2)
    added.clear()
    async with Rig(PydanticAgent(agent, "test", settings, pool), settings=settings) as rig:  # type: ignore[arg-type]
        record = await rig.end(await rig.start())
    pool.close(1.0)
    assert record.error is not None
    assert (record.error["code"], record.usage["requests"], len(added)) == ("budget_steps", 55, 55)


async def delegate(ctx: RunContext) -> AsyncIterator[AgentEvent]:
    """One tool that asks a helper's model again and again."""
    yield ToolCalled("call_1", "ask", {})
    for _ in range(TURNS):
        yield ToolAsks("call_1", "helper")
        yield ToolResponded("call_1", "helper", "stop", {"input_tokens": 30, "output_tokens": 10}, 5)
    yield ToolFinished("call_1", "ask", "success", "asked", 20)
    yield Result("done")


@pytest.mark.parametrize(
    ("rules", "asked"),
    [({"budget_steps": 2}, 2), ({"budget_tokens": 40}, 1), ({}, TURNS)],
    ids=["steps", "tokens", "no"],
)
async def test_what_helpers_use_is_the_runs(rules: dict[str, Any], asked: int) -> None:
    """F9: a run whose tool asked models of its own had no budget at all, and its record said that it cost nothing."""
    async with Rig(FunctionAgent(delegate), settings=QUICK.model_validate({**QUICK.model_dump(), **rules})) as rig:
        key = await rig.start()
        record, events = await rig.end(key), await rig.events(key)
    assert len([e for e in events if e["type"] == "tool.responded"]) == asked
    assert record.usage == {"requests": asked, "input_tokens": 30 * asked, "output_tokens": 10 * asked}
    assert record.state is (State.FAILED if rules else State.COMPLETED)
    if rules:
        assert record.error is not None
        assert record.error["code"] == next(iter(rules))
