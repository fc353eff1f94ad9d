"""How many tools of one run work at once, in which order, and what happens when a model asks in circles."""

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent, RunContext, Tool
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.agents.repeats import Repeats
from holdfast.config.settings import Settings
from holdfast.domain.runs import Reason
from holdfast.ports.agent import Checkpoint, Degraded, ToolCalled, ToolFinished
from holdfast.tools import ToolPool
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell


class Crowd:
    """A tool that counts how many of it work at the same time."""

    def __init__(self, pause_s: float = 0.03) -> None:
        self.at_once = self.most = 0
        self.began: list[int] = []
        self.pause_s = pause_s

    async def work(self, n: int) -> int:
        self.began.append(n)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(self.pause_s * (1 + n % 3))
        self.at_once -= 1
        return n


def calls(n: int) -> list[str]:
    return [f'!tool work {{"n": {i}}}' for i in range(n)]


@pytest.mark.parametrize("parallel", [1, 3, 8])
async def test_no_more_tools_of_a_run_work_at_once_than_the_setting_says(rig: Rig, parallel: int) -> None:
    """F58: a model that asks for forty things at once must not open forty connections."""
    rig.settings = rig.settings.model_copy(update={"tool_parallel": parallel})
    crowd = Crowd()
    told = await rig.run(*calls(9), "!say done", tools=[crowd.work])
    assert crowd.most == parallel
    assert crowd.began == list(range(9)), "in the order in which the model asked"
    assert [m["content"] for m in rig.sent() if m["role"] == "tool"] == [str(n) for n in range(9)]
    assert told.result.output == "done"
    assert problems(rig.sent()) == []


async def test_waiting_for_a_place_does_not_count_against_a_tools_own_limit(rig: Rig) -> None:
    """The last of nine would time out because of the eight before it."""
    rig.settings = rig.settings.model_copy(update={"tool_parallel": 1, "tool_timeout_s": 1.5})
    crowd = Crowd(pause_s=0.1)
    told = await rig.run(*calls(9), "!say done", tools=[crowd.work])
    assert [event.outcome for event in told.of(ToolFinished)] == ["success"] * 9


async def test_a_tool_that_ignores_its_end_gives_its_place_back(rig: Rig) -> None:
    """One stubborn tool must not lock the others out."""
    rig.settings = rig.settings.model_copy(update={"tool_parallel": 1, "stop_grace_s": 0.05})
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def quick() -> str:
        return "quick"

    told = await rig.run("!tool stubborn {}", "!tool quick {}", "!say done", tools=[Tool(stubborn, timeout=0.1), quick])
    let_go.set()
    assert told.outcomes() == {"stubborn": "timeout", "quick": "success"}


async def test_a_call_that_a_tool_makes_itself_needs_no_place_of_its_own(rig: Rig) -> None:
    """A tool that waits for its own call would wait for itself."""
    rig.settings = rig.settings.model_copy(update={"tool_parallel": 1})

    async def inner() -> str:
        return "inside"

    async def outer(ctx: RunContext[None]) -> Any:
        assert ctx.tool_manager is not None
        return await ctx.tool_manager.handle_call(ToolCallPart("inner", {}, tool_call_id="nested"))

    told = await rig.run("!tool outer {}", "!say done", tools=[inner, outer])
    assert told.of(ToolFinished)[0].result == "inside"


async def test_a_sequential_tool_runs_alone(rig: Rig) -> None:
    """The library's barrier is the author's word; our cap must not weaken it."""
    crowd, alone = Crowd(), []

    async def barrier() -> str:
        alone.append(crowd.at_once)
        await asyncio.sleep(0.05)
        alone.append(crowd.at_once)
        return "alone"

    tools = [crowd.work, Tool(barrier, sequential=True)]
    told = await rig.run(*calls(3), "!tool barrier {}", *calls(3), "!say done", tools=tools)
    assert alone == [0, 0]
    assert len(told.of(ToolFinished)) == 7


async def test_no_tool_starts_before_the_whole_response_and_its_checkpoint_are_taken(rig: Rig) -> None:
    """F58: what is started and not written down cannot be resumed; each call of the response, not the first alone."""
    crowd = Crowd()
    seen: list[int] = []
    async for event in rig.agent([crowd.work]).run(context("\n".join([*calls(5), "!say done"]))):
        if isinstance(event, ToolCalled | Checkpoint) and not seen.count(5):
            await asyncio.sleep(0.01)
            seen.append(len(crowd.began))
        if isinstance(event, Checkpoint):
            break
    assert seen == [0] * 6


# loops


def _stuck(tool: Any, settings: Settings, *, same: bool = True) -> PydanticAgent:
    """A model that calls the same tool fifteen times."""

    async def stream(messages: list, info: AgentInfo):
        n = len(messages)
        if n > 30:
            yield "done"
            return
        args = '{"b": 1, "a": 2}' if n % 4 == 1 else '{"a":2,"b":1}'
        yield {0: DeltaToolCall(name=info.function_tools[0].name, json_args=args if same else f'{{"a": {n}, "b": 1}}')}

    return PydanticAgent(
        Agent(FunctionModel(stream_function=stream), tools=[tool]), "stuck", settings, ToolPool(2, 1.0)
    )


async def add(a: int, b: int) -> int:
    return a + b


async def test_a_model_that_repeats_itself_is_told_and_then_ended() -> None:
    """F9: warn at three, end at the set number, whatever the order of the arguments' keys."""
    told = await tell(_stuck(add, Settings(tool_repeats=5)).run(context("go")))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.BUDGET, "tool_loop")
    assert "add" in told.ended.message
    assert told.ended.remedy
    results = [event.result for event in told.of(ToolFinished)]
    assert results[:2] == [3, 3]
    assert [value["result"] for value in results[2:]] == [3, 3]
    assert "3 in a row" in results[2]["note"]
    assert [event.what for event in told.of(Degraded)] == ["tool_loop"]
    assert len(told.of(ToolCalled)) == 5  # the last was asked for and not run; the executor closes it


async def test_a_failing_call_that_is_repeated_is_told_so_too() -> None:
    """That is how most loops look."""

    async def fails(a: int, b: int) -> None:
        raise ValueError("bang")

    told = await tell(_stuck(fails, Settings(tool_repeats=5)).run(context("go")))
    assert told.ended is not None
    assert told.ended.code == "tool_loop"
    results = [event.result for event in told.of(ToolFinished)]
    assert "in a row" not in results[1]
    assert results[3].startswith("ValueError: bang")
    assert "4 in a row" in results[3]


@pytest.mark.parametrize("settings", [Settings(tool_repeats=0), Settings(tool_repeats=0, tool_repeats_warn=0)])
async def test_the_loop_detector_can_be_switched_off(settings: Settings) -> None:
    """Another limit ends the run then, if any does."""
    told = await tell(_stuck(add, settings).run(context("go")))
    assert told.result.output == "done"
    assert len(told.of(Degraded)) == (1 if settings.tool_repeats_warn else 0)


async def test_a_tool_that_polls_is_never_counted() -> None:
    """An honest question may have the same answer for an hour."""
    told = await tell(_stuck(Tool(add, metadata={"polling": True}), Settings(tool_repeats=4)).run(context("go")))
    assert told.result.output == "done"
    assert told.of(Degraded) == []


async def test_calls_that_differ_are_no_loop() -> None:
    """Work through a list is what agents are for."""
    told = await tell(_stuck(add, Settings(tool_repeats=4), same=False).run(context("go")))
    assert told.result.output == "done"


def test_only_steps_in_a_row_count() -> None:
    """A question that comes back after other work is no loop, nor is one asked twice in one step."""
    a, b = ToolCallPart("f", '{"x": 1}', tool_call_id="1"), ToolCallPart("f", '{"x": 2}', tool_call_id="2")
    repeats = Repeats(3, 10, lambda _: False)
    for _ in range(20):
        assert repeats.step([a, a, a]) == []
        assert repeats.step([a, b]) == []
        assert repeats.step([b]) == []
    found = [repeats.step([ToolCallPart("f", "no json", tool_call_id="3")]) for _ in range(3)]
    assert [len(step) for step in found] == [0, 0, 1]


async def test_a_loop_is_counted_through_a_crash() -> None:
    """A worker that dies every few steps must not make a loop endless."""
    settings = Settings(tool_repeats=6)
    first = await tell(_stuck(add, settings).run(context("go")))
    checkpoint = first.checkpoints[4]  # after the third response, before its tool
    second: Told = await tell(_stuck(add, settings).run(context("go", attempt=2, epoch=2, checkpoint=checkpoint)))
    assert second.ended is not None
    assert second.ended.code == "tool_loop"
    before = [e for e in first.events[: first.events.index(first.of(Checkpoint)[2])] if isinstance(e, ToolCalled)]
    assert len(before) + len(second.of(ToolCalled)) == 6
