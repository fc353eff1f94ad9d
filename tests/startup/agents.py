"""Agents of the tests of the start."""

import time

from pydantic_ai import Agent

none = None
modelless = Agent(name="modelless")


async def good(ctx):
    """Needs no model."""
    yield "hello"


class SlowTracer:
    """Takes its time to be made."""

    def __init__(self):
        time.sleep(1)
