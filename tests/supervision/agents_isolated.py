"""Agents with tools that can be killed, and with one that cannot; copied beside the database, imported there only."""

import time

from isolated_tools import add, generations, shell
from pydantic_ai import Agent, Tool


def block(seconds: float) -> str:
    """Block a thread, where no cancellation arrives."""
    time.sleep(seconds)
    return "unblocked"


def quick() -> str:
    """Need a thread for a moment."""
    return "here"


hurried = Tool(generations, name="hurried", timeout=3)
gang = Agent(name="gang", tools=[generations, hurried, add, shell, block, quick])
