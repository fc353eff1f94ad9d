"""One agent that answers at once, and one that works until it is stopped."""

import asyncio
from collections.abc import AsyncIterator

from holdfast.ports.agent import RunContext


async def quick(ctx: RunContext) -> AsyncIterator[str]:
    yield "well"


async def hold(ctx: RunContext) -> AsyncIterator[str]:
    yield "working"
    await asyncio.sleep(600)
