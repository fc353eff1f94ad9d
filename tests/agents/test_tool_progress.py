"""What tools say while they work reaches the reader: from coroutines and threads, before the result, and once."""

import asyncio
import threading
from typing import Any

import pytest
from pydantic_ai import Agent, Tool
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.config.settings import Settings
from holdfast.ports.agent import TextDelta, ToolFinished, ToolProgress
from holdfast.tools import ToolPool, progress
from tests.agents.support import LIMIT_S, Rig, Told, context, tell, until


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_tool_reports_while_it_works_and_before_its_result(rig: Rig, blocking: bool) -> None:
    """F57: a tool of two minutes that says nothing looks like one that hangs."""
    heard = threading.Event()

    def thread() -> str:
        progress("half ")
        assert heard.wait(LIMIT_S)
        progress("done")
        return "ok"

    async def work() -> str:
        progress("half ")
        await until(heard.is_set)
        progress("done")
        return "ok"

    work.__name__ = thread.__name__ = "work"
    told = Told()
    async for event in rig.agent([thread if blocking else work]).run(context("!tool work {}\n!say end")):
        told.events.append(event)
        if isinstance(event, ToolProgress):
            heard.set()
    said = told.of(ToolProgress)
    assert "".join(event.text for event in said) == "half done"
    assert {event.call for event in said} == {told.of(ToolFinished)[0].call}
    assert told.events.index(said[-1]) < told.events.index(told.of(ToolFinished)[0])


async def test_parallel_tools_speak_each_for_its_own_call(rig: Rig) -> None:
    """Output under the wrong card is worse than none."""

    async def say(word: str) -> str:
        for _ in range(3):
            progress(word)
            await asyncio.sleep(0.01)
        return word

    told = await rig.run('!tool say {"word": "a"}', '!tool say {"word": "b"}', "!say end", tools=[say])
    for finished in told.of(ToolFinished):
        said = "".join(event.text for event in told.of(ToolProgress) if event.call == finished.call)
        assert said == finished.result * 3


async def test_a_tool_that_floods_is_cut_and_the_run_goes_on(rig: Rig) -> None:
    """F60: bounded in bytes, with a mark, and not one event for each line."""

    def flood() -> str:
        for n in range(50_000):
            progress(f"line {n}\n")
        return "ok"

    told = await rig.run("!tool flood {}", "!say end", tools=[flood])
    said = told.of(ToolProgress)
    assert len(said) < 50
    assert sum(len(event.text.encode()) for event in said) == rig.settings.tool_progress_bytes
    assert said[-1].truncated
    assert said[-1].bytes == sum(len(f"line {n}\n") for n in range(50_000))
    assert told.result.output == "end"


async def test_a_thread_that_outlives_its_call_is_not_heard(rig: Rig) -> None:
    """After the call has ended its words belong to nothing."""
    rig.settings = rig.settings.model_copy(update={"tool_timeout_s": 5.0})
    let_go, gone = threading.Event(), threading.Event()

    def late() -> None:
        let_go.wait(LIMIT_S)
        progress("too late")
        gone.set()

    async def wait() -> str:
        let_go.set()
        await until(gone.is_set)
        await asyncio.sleep(0.15)
        return "waited"

    told = await rig.run("!tool late {}", "!say x", "!tool wait {}", "!say end", tools=[Tool(late, timeout=0.1), wait])
    assert told.outcomes() == {"late": "timeout", "wait": "success"}
    assert told.of(ToolProgress) == []


async def test_a_tool_that_is_stopped_has_said_what_it_said(rig: Rig) -> None:
    """The last words before a stop explain it."""
    ctx, told = context("!tool work {}"), Told()
    speaking = asyncio.Event()

    async def work() -> None:
        progress("one ")
        await asyncio.sleep(0)
        progress("two ")
        speaking.set()
        await asyncio.sleep(30)

    running = asyncio.ensure_future(tell(rig.agent([work]).run(ctx), told))
    await until(speaking.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    said = [*told.of(ToolProgress), *(event for event in ctx.leftover if isinstance(event, ToolProgress))]
    assert "".join(event.text for event in said) == "one two "


async def test_a_slow_reader_does_not_hold_a_tool_up() -> None:
    """A full channel makes a tool's words rarer, not the tool slower."""
    finished = asyncio.Event()
    answers = iter([True, False])

    async def chatty() -> str:
        for n in range(100):
            progress(f"{n} ")
            await asyncio.sleep(0.001)
        finished.set()
        return "ok"

    async def stream(messages: list[Any], info: AgentInfo):
        if next(answers):
            yield {0: DeltaToolCall(name="chatty", json_args="{}", tool_call_id="c")}
        else:
            yield "end"

    model = FunctionModel(stream_function=stream)
    agent = PydanticAgent(Agent(model, tools=[chatty]), "test", Settings(), ToolPool(1, 1.0))
    told = Told()
    async for event in agent.run(context("go")):
        told.events.append(event)
        if isinstance(event, ToolProgress) and len(told.of(ToolProgress)) == 1:
            await until(finished.is_set)  # the reader stands still until the tool is done
    assert "".join(event.text for event in told.of(ToolProgress)) == "".join(f"{n} " for n in range(100))
    assert told.of(TextDelta)
