"""The agent of `holdfast demo`: tools to stop while they work. The rehearsal model calls them by script."""

from __future__ import annotations

import asyncio
import time

from pydantic_ai import Agent

SECONDS_MAX = 60.0

agent = Agent(name="demo", instructions="You are the agent of the demo.")


@agent.tool_plain
async def sleep(seconds: float) -> str:
    """Sleep without blocking, at most a minute. Stop cancels it at once."""
    await asyncio.sleep(min(seconds, SECONDS_MAX))
    return f"slept {min(seconds, SECONDS_MAX):g} s"


@agent.tool_plain
def block(seconds: float) -> str:
    """Block a thread, at most a minute. Stop abandons the thread and says so."""
    time.sleep(min(seconds, SECONDS_MAX))
    return f"blocked a thread for {min(seconds, SECONDS_MAX):g} s"


@agent.tool_plain
async def freeze(seconds: float) -> str:
    """Block the worker's event loop, at most a minute: a fault. The worker is killed, and others go on."""
    time.sleep(min(seconds, SECONDS_MAX))  # noqa: ASYNC251 - the fault that this tool is for
    return f"froze the loop for {min(seconds, SECONDS_MAX):g} s"
