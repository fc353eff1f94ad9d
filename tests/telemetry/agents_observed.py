"""Agents that `serve` imports in the tests of telemetry; copied beside its database."""

import os
import sys

from pydantic_ai import Agent

SECRET = os.environ.get("HOLDFAST_MODEL_KEY", "")

watched = Agent(name="watched", instructions="Answer in one sentence.")


@watched.tool_plain
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@watched.tool_plain
async def leak() -> str:
    """Fail as a client library does, with the key in the message."""
    raise RuntimeError(f"401: incorrect API key provided: {SECRET}")


@watched.tool_plain
async def settings() -> dict[str, str]:
    """Return what holds a secret."""
    return {"key": SECRET, "region": "here"}


@watched.tool_plain
async def chatter(lines: int) -> str:
    """Print as if nobody had to read it."""
    for _ in range(lines):
        print("x" * 99)  # noqa: T201
        print("y" * 99, file=sys.stderr)  # noqa: T201
    return "printed"


async def broken(ctx):
    """An agent whose own exception has the key in it."""
    yield "half"
    raise RuntimeError(f"request with Authorization: Bearer {SECRET} failed")
