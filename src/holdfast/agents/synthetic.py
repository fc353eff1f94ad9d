"""The agent of synthetic runs: it says one word, and waits for the stop that proves the rest. It needs no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from holdfast.domain.ids import SYNTHETIC_AGENT
from holdfast.ports.agent import AgentEvent, PartDone, Result, RunContext, TextDelta

SAYS = "up"
_WAITS_S = 60.0  # longer than its deadline


class SyntheticAgent:
    """Served by every worker, shown in no list."""

    name = SYNTHETIC_AGENT
    kind = ""
    resumable = False

    async def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        """Say it, then do nothing until the run is stopped."""
        yield TextDelta(ctx.first_part, SAYS)
        yield PartDone(ctx.first_part)
        await asyncio.sleep(_WAITS_S)
        yield Result(SAYS)
