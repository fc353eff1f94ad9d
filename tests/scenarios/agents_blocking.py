"""An agent whose tools ignore their cancellation, each in its way; copied beside the database, imported there only."""

import asyncio
import json
import time
from pathlib import Path

from pydantic_ai import Agent

JOURNAL = Path(__file__).with_name("journal.jsonl")

blocking = Agent(name="blocking", instructions="Answer in one sentence.")


def note(tool: str) -> None:
    """Say that a tool has begun."""
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps({"tool": tool}) + "\n")


@blocking.tool_plain
async def deaf(seconds: float) -> str:
    """Sleep, and swallow every cancellation; the loop lives."""
    note("deaf")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue
    return "heard nothing"


@blocking.tool_plain
def block(seconds: float) -> str:
    """Block a thread, where no cancellation arrives: the synchronous HTTP call of document 4."""
    note("block")
    time.sleep(seconds)
    return "unblocked"


@blocking.tool_plain
async def hog(seconds: float) -> str:
    """Block the whole event loop."""
    note("hog")
    time.sleep(seconds)
    return "done"
