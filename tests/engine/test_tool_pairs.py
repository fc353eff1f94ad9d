"""The log's promise about tools, whoever ends the run and how: each tool.called has one tool.finished after it."""

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, Tool
from pydantic_ai.exceptions import ApprovalRequired
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason, State
from holdfast.tools import ToolPool, progress
from tests.engine.rig import QUICK, Rig


async def good() -> str:
    progress("at work")
    return "fine"


async def asks() -> None:
    raise ApprovalRequired


async def halts() -> None:
    raise RunEnded(Reason.TOOL_ERROR, "broken_for_good", "the disk is gone")


async def hangs() -> None:
    await asyncio.sleep(60)


async def again() -> None:
    raise ModelRetry("again")


def calling(*names: str, times: int = 1) -> PydanticAgent:
    """An agent whose model asks for these tools, so many steps long, and then is done."""

    async def stream(messages: list[Any], info: AgentInfo):
        step = len(messages) // 2
        if step >= times:
            yield "done"
            return
        for at, name in enumerate(names):
            yield {at: DeltaToolCall(name=name, json_args="{}", tool_call_id=f"call_{step}_{at}")}

    tools = [good, Tool(asks, requires_approval=False), halts, hangs, again]
    return PydanticAgent(Agent(FunctionModel(stream_function=stream), tools=tools), "test", QUICK, ToolPool(2, 1.0))


ENDS = {
    "mistakes": (calling("good", "nope", "again", times=3), State.COMPLETED, None),
    "denied": (calling("good", "asks"), State.COMPLETED, None),
    "ended by a tool": (calling("good", "halts", "hangs"), State.FAILED, "broken_for_good"),
    "loop": (calling("good", times=99), State.FAILED, "tool_loop"),
    "stopped": (calling("good", "hangs", "nope"), State.CANCELLED, None),
}


@pytest.mark.parametrize("how", ENDS)
async def test_each_call_has_one_end_however_the_run_ends(how: str) -> None:
    """A card that spins for ever, in every client, is what a missing end looks like."""
    agent, state, code = ENDS[how]
    async with Rig(agent) as rig:
        key = await rig.start("go")
        if how == "stopped":
            await rig.until(key, "tool.finished")
            await rig.sessions.stop(key, "tester")
        if how == "denied":
            asked = (await rig.until(key, "run.waiting"))["requests"]
            while (await rig.sessions.get(key)).state is not State.WAITING:
                await asyncio.sleep(0.01)
            await rig.sessions.decide(key, [{"call": each["call"], "approve": False} for each in asked])
        record = await rig.end(key)
        events = await rig.events(key)
    assert record.state is state, record
    assert (record.error or {}).get("code") == code
    opened: list[str] = []
    for event in events:
        if event["type"] == "tool.called":
            opened.append(event["call"])
        elif event["type"] == "tool.finished":
            opened.remove(event["call"])
        elif event["type"] == "tool.progress":
            assert event["call"] in opened
    assert opened == []
    assert len([e for e in events if e["type"] == "tool.called"]) >= 1
