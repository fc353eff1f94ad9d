"""pydantic-ai's agents behind the `Agent` port: the loop, the tools and the messages are theirs, the ends are ours.

Each attempt of a run is a `Drive`, in a task of its own that sends events through a channel: the reader of a run sees a
retry while it sleeps, and a checkpoint is durable before the tools behind it start.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.models import Model

from holdfast.agents.driving import Drive
from holdfast.agents.failures import to_run_ended
from holdfast.agents.history import KIND
from holdfast.agents.results import words
from holdfast.aio import Owner, settle
from holdfast.config.settings import Settings
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.models import ModelGuard
from holdfast.ports.agent import (
    AgentEvent,
    RunContext,
)
from holdfast.tools import ToolPool


class PydanticAgent:
    """A `pydantic_ai.Agent`, or what wraps one, behind the `Agent` port."""

    kind = KIND
    resumable = True

    def __init__(
        self,
        agent: AbstractAgent[Any, Any],
        name: str,
        settings: Settings,
        pool: ToolPool,
        model: Model | None = None,
        guard: ModelGuard | None = None,
    ) -> None:
        """Hold the agent; nothing is opened yet.

        Args:
            agent: The user's agent, not changed.
            name: The name that clients use.
            settings: The limits.
            pool: Where its sync tools run.
            model: In place of the agent's own.
            guard: What its models share with the others of this process; one of its own by default.
        """
        self.name = name
        self.agent = agent
        self.settings = settings
        self.pool = pool
        self.model = model
        self.guard = guard if guard is not None else ModelGuard.of(settings)
        self.owner = Owner(_ignore)
        # pydantic-ai greets whoever starts it from a terminal; a worker's output is its log.
        os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")

    @property
    def model_name(self) -> str:
        """The model that answers, as far as it is known before a run."""
        model = self.model if self.model is not None else self.agent.model
        return model.model_name if isinstance(model, Model) else str(model or "")

    async def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        """Work on the input; see the `Agent` port.

        Raises:
            RunEnded: With the reason, whatever went wrong.
        """
        drive = Drive(self, ctx)
        task = self.owner.spawn(drive.drive(), f"agent {self.name} {ctx.key.run}")
        task.add_done_callback(lambda _: drive.channel.close())
        try:
            async for event in drive.channel.read():
                yield event
        finally:
            drive.channel.hang_up()
            await _end(task)
            ctx.leftover = drive.channel.leave()
        if drive.failure is not None:
            ended = to_run_ended(drive.failure)
            if ended is drive.failure:
                raise ended
            raise ended from drive.failure
        if task.cancelled():
            raise RunEnded(Reason.AGENT_ERROR, "agent_cancelled_itself", "the agent cancelled its own task")
        odd = task.exception()
        if odd is not None:  # no Exception: whoever reads the run must not take its silence for an answer
            raise RunEnded(Reason.AGENT_ERROR, "agent_exception", words(odd), cause=type(odd).__name__) from odd


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel what still drives the agent, and see it end: sockets closed, tools cancelled, messages recovered."""
    task.cancel()
    while not task.done():  # how long this may take is the executor's to say: it abandons us after its grace
        await settle({task}, 1.0)


def _ignore(name: str, error: BaseException) -> None:
    """The failure of a tool's or a driver's task is told through its result; nothing is left to report."""
    del name, error
