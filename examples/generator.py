"""An agent without any library: an async generator that yields text. holdfast serve generator:agent"""

import asyncio
from collections.abc import AsyncIterator

from holdfast.ports.agent import RunContext


async def agent(ctx: RunContext) -> AsyncIterator[str]:
    for word in ctx.input.split():
        yield word + " "
        await asyncio.sleep(0.1)  # Stop arrives here, as a cancellation: let it pass through
