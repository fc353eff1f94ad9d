"""Agents of the tests of the start."""

import asyncio
import threading
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
        time.sleep(4)


async def slow(ctx):
    """Takes longer than its run may."""
    await asyncio.sleep(60)
    yield "late"


async def blocks(ctx):
    """Holds up the loop of its worker."""
    time.sleep(60)
    yield "late"


class FailsLater:
    """A tracer that works until it is told otherwise."""

    fault = ""
    over = threading.Event()

    def start_span(self, *args, **kwargs):
        """As its fault says."""
        if self.fault == "raises":
            raise RuntimeError("out of luck")
        if self.fault == "hangs":
            self.over.wait(30)
        return Nothing()


class Nothing:
    """A span that takes everything."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None
