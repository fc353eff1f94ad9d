"""Agents that `serve` imports in the tests of the whole system; copied beside its database, and never imported here.

The tools write what happens to them into `journal.jsonl`, so that a receipt can be compared with the truth.
"""

import asyncio
import json
import random
import time
from pathlib import Path

from pydantic_ai import Agent

from holdfast.ports.agent import PartDone, ReasoningDelta, TextDelta, ToolCalled, ToolFinished, ToolProgress

JOURNAL = Path(__file__).with_name("journal.jsonl")

diver = Agent(name="diver", instructions="Answer in one sentence.")


def note(tool: str, what: str) -> None:
    """One line, with a clock that all processes of a machine share."""
    with JOURNAL.open("a") as journal:
        journal.write(json.dumps({"tool": tool, "what": what, "at": time.monotonic()}) + "\n")


@diver.tool_plain
async def nap(seconds: float) -> str:
    """Sleep, and be woken by a cancellation."""
    note("nap", "began")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("nap", "cancelled")
        raise
    note("nap", "returned")
    return "rested"


@diver.tool_plain
def block(seconds: float) -> str:
    """Block a thread, where no cancellation arrives."""
    note("block", "began")
    time.sleep(seconds)
    note("block", "returned")
    return "unblocked"


@diver.tool_plain
async def deaf(seconds: float) -> str:
    """Sleep, and swallow every cancellation."""
    note("deaf", "began")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            note("deaf", "swallowed")
    note("deaf", "returned")
    return "heard nothing"


@diver.tool_plain
async def echo(text: str) -> str:
    """Give the text back."""
    note("echo", text)
    return text


@diver.tool_plain
def double(number: int) -> int:
    """Sync, and quick."""
    return number * 2


async def ticker(ctx):
    """Yield `n` events of about `size` bytes in `seconds` seconds; `hold` then keeps the run open for so long.

    Text, reasoning and the output of a tool alternate, so that nothing is coalesced; the text has characters of one
    to four bytes, quotes and line ends, because what must come out byte for byte has these.
    """
    asked = {"n": 100, "seconds": 0.0, "size": 100, "hold": 0.0, **json.loads(ctx.input)}
    chance = random.Random(asked["n"])
    began, part = time.monotonic(), 0
    yield ToolCalled("c1", "spool", {})
    for i in range(asked["n"]):
        text = f'{i} "é€🌊"\n\\ \r' + chance.choice("abc\u2028") * max(0, asked["size"] - 120)
        if i % 5 == 0:
            part += 1
            yield TextDelta(part, text)
            yield PartDone(part)
        elif i % 5 == 1:
            part += 1
            yield ReasoningDelta(part, text)
            yield PartDone(part)
        else:
            yield ToolProgress("c1", text)
        if i % 8 == 0:
            await asyncio.sleep(max(0.0, began + asked["seconds"] * i / asked["n"] - time.monotonic()))
    yield ToolFinished("c1", "spool", "success", None, 0)
    await asyncio.sleep(asked["hold"])


async def laggard(ctx):
    """`{"times": n, "seconds": s}`: hold the loop up for s seconds, n times; any other input is said back."""
    try:
        asked = json.loads(ctx.input)
    except ValueError:
        yield TextDelta(0, ctx.input)
        return
    yield TextDelta(0, "lagging")
    for _ in range(asked["times"]):
        await asyncio.sleep(0.05)
        time.sleep(asked["seconds"])
