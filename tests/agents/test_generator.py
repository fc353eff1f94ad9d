"""A plain async generator under the same promises."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast.agents import GeneratorAgent
from holdfast.domain.runs import Reason
from holdfast.ports.agent import PartDone, Result, RunContext, TextDelta, ToolCalled, ToolFinished
from tests.agents.support import context, tell


async def test_strings_are_one_part_and_the_output() -> None:
    """The smallest agent there is needs no word of our vocabulary."""

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "Hello "
        yield ctx.input

    told = await tell(GeneratorAgent(agent, "a").run(context("world", first_part=3)))
    assert told.events == [TextDelta(3, "Hello "), TextDelta(3, "world"), PartDone(3), Result("Hello world")]


async def test_an_event_in_between_ends_a_part() -> None:
    """Text before and after a tool is not one paragraph."""

    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        yield "before"
        yield ToolCalled("c", "t", {})
        yield ToolFinished("c", "t", "success", 1, 0)
        yield "after"

    told = await tell(GeneratorAgent(agent, "a").run(context()))
    assert [e.part for e in told.of(TextDelta)] == [0, 1]
    assert told.result.output == "beforeafter"


async def test_a_result_of_its_own_is_the_last_item() -> None:
    """Exactly one result, and nothing after it."""

    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        yield "thinking aloud"
        yield Result("42")
        yield "too late"

    told = await tell(GeneratorAgent(agent, "a").run(context()))
    assert told.events[-2:] == [PartDone(0), Result("42")]


@pytest.mark.parametrize("value", [7, None, b"bytes"])
async def test_anything_else_ends_the_run_and_says_what_is_taken(value: Any) -> None:
    """A silent str() would show a client somebody's repr."""

    async def agent(ctx: RunContext) -> AsyncIterator[Any]:
        yield value

    told = await tell(GeneratorAgent(agent, "a").run(context()))
    assert told.ended is not None
    assert told.ended.code == "agent_bad_event"
    assert type(value).__name__ in told.ended.message


async def test_its_exception_is_an_agent_error_with_its_type() -> None:
    """Translated in one place, with the cause kept."""

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        yield "so far"
        raise LookupError("lost")

    told = await tell(GeneratorAgent(agent, "a").run(context()))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.cause) == (Reason.AGENT_ERROR, "LookupError")
    assert isinstance(told.ended.__cause__, LookupError)


async def test_stop_reaches_the_generator_and_closes_it() -> None:
    """Its `finally` is where it lets go of what it holds."""
    closed, waiting = asyncio.Event(), asyncio.Event()

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            yield "a"
            waiting.set()
            await asyncio.sleep(30)
        finally:
            closed.set()

    running = asyncio.ensure_future(tell(GeneratorAgent(agent, "a").run(context())))
    await asyncio.wait_for(waiting.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert closed.is_set()


async def test_a_reader_that_leaves_closes_it_too() -> None:
    """aclose() of ours is aclose() of theirs."""
    closed = asyncio.Event()

    async def agent(ctx: RunContext) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.set()

    run = GeneratorAgent(agent, "a").run(context())
    assert await anext(run) == TextDelta(0, "x")
    await run.aclose()  # type: ignore[attr-defined]
    assert closed.is_set()
