"""Agents that wait, block, or leave by the wrong door; copied beside the database, imported there only."""

import asyncio
import contextlib
import sys
import time

from pydantic_ai import Agent
from pydantic_ai.toolsets import FunctionToolset, WrapperToolset

watched = Agent(name="watched", instructions="Answer in one sentence.")


@watched.tool_plain
async def nap(seconds: float) -> str:
    """Sleep in a coroutine below a coroutine."""

    async def deep() -> None:
        await asyncio.sleep(seconds)

    await deep()
    return "rested"


@watched.tool_plain
def block(seconds: float) -> str:
    """Block a thread."""
    hold_the_thread(seconds)
    return "unblocked"


def hold_the_thread(seconds: float) -> None:
    time.sleep(seconds)


@watched.tool_plain
async def hog(seconds: float) -> str:
    """Block the loop, for a while."""
    hold_the_loop(seconds)
    return "done"


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def leave(what: str) -> None:
    await asyncio.sleep(0.01)
    if what == "interrupt":
        raise KeyboardInterrupt
    sys.exit(3)


async def quitter(ctx):
    """Leave in a task that the agent started itself, and waits for or not."""
    yield "before "
    if ctx.input == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(leave("exit"))
    task = asyncio.create_task(leave(ctx.input))
    if ctx.input == "forget":
        await asyncio.wait([task], timeout=5)
        with contextlib.suppress(Exception):
            task.result()
    else:
        await task
    yield "after"


async def stubborn(ctx):
    """The first time in its session it hears nothing of its end; then it says what it knows of before."""
    yield "begun "
    while not ctx.history:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
    yield f"after {len(ctx.history)}"


class Hook(WrapperToolset):
    """A toolset whose hook leaves: what an MCP client or a plugin may do."""

    async def get_tools(self, ctx):
        sys.exit(4)


hooked = Agent(name="hooked", toolsets=[Hook(FunctionToolset())])
