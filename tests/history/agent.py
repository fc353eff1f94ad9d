"""The agent that is cut short: an echo, a tool that fails, a slow one, one that blocks a thread."""

import asyncio
import time

from pydantic_ai import Agent

agent = Agent(name="kelp", instructions="Use the tools.")


@agent.tool_plain
def echo(t: int) -> str:
    """A sync tool, in a thread."""
    return f"echo of {t}"


@agent.tool_plain
async def later(t: int, seconds: float = 0.005) -> dict[str, int]:
    """A slow async tool."""
    await asyncio.sleep(seconds)
    return {"later": t}


@agent.tool_plain
def block(t: int, seconds: float = 0.005) -> str:
    """A sync tool that blocks its thread."""
    time.sleep(seconds)
    return f"blocked for {t}"


@agent.tool_plain
async def fail(t: int) -> str:
    """A tool that breaks."""
    raise ValueError(f"cannot {t}")
