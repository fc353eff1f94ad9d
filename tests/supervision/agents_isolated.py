"""Agents with tools that can be killed, and with one that cannot; copied beside the database, imported there only."""

import asyncio
import time
from pathlib import Path

from isolated_tools import add, generations, shell
from pydantic_ai import Agent, Tool


def block(seconds: float) -> str:
    """Block a thread, where no cancellation arrives."""
    Path(__file__).with_name("blocks").touch()
    time.sleep(seconds)
    return "unblocked"


def quick() -> str:
    """Need a thread for a moment."""
    return "here"


hurried = Tool(generations, name="hurried", timeout=3)
gang = Agent(name="gang", tools=[generations, hurried, add, shell, block, quick])


async def teller(ctx):
    """Speak for seven seconds, and be unable to go on elsewhere."""
    for i in range(70):
        yield f"{i} "
        await asyncio.sleep(0.1)
