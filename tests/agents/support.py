"""An agent on a rehearsal model's real socket, and everything that it yielded."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models import Model

from holdfast.agents import PydanticAgent
from holdfast.config.settings import Settings
from holdfast.domain.errors import RunEnded
from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.models import ModelClient
from holdfast.ports.agent import AgentEvent, AttemptDiscarded, Checkpoint, Result, RunContext, TextDelta, ToolFinished
from holdfast.ports.probe import Probe
from holdfast.rehearsal import RehearsalServer
from holdfast.tools import ToolPool

LIMIT_S = 5.0


def context(text: str = "", **given: Any) -> RunContext:
    """A run's context with the fields that a test cares for."""
    fields: dict[str, Any] = {
        "key": RunKey("local", "r_1"),
        "session": "s_1",
        "attempt": 1,
        "epoch": 1,
        "input": text,
        "history": [],
        "checkpoint": None,
        "first_part": 0,
        "deadline": asyncio.get_running_loop().time() + 60.0,
        "model": "",
        "settings": {},
        "instructions": "",
        "metadata": {},
        "probe": Probe(),
    }
    return RunContext(**{**fields, **given})


class Told:
    """What a run told its reader, and how it ended."""

    def __init__(self) -> None:
        self.events: list[AgentEvent] = []
        self.at: list[float] = []
        self.ended: RunEnded | None = None

    def of(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def text(self) -> str:
        """What a reader has on the screen: parts that were discarded are not there."""
        dropped = {part for event in self.of(AttemptDiscarded) for part in event.parts}
        return "".join(event.text for event in self.of(TextDelta) if event.part not in dropped)

    @property
    def result(self) -> Result:
        assert isinstance(self.events[-1], Result), (self.events[-1:], self.ended)
        return self.events[-1]

    @property
    def checkpoints(self) -> list[bytes]:
        """Every state that a crash may leave, oldest first."""
        found = [e.data if isinstance(e, Checkpoint) else e.checkpoint for e in self.of(Checkpoint, ToolFinished)]
        return [data for data in found if data]

    def outcomes(self) -> dict[str, str]:
        """Tool name -> outcome."""
        return {event.name: event.outcome for event in self.of(ToolFinished)}


async def tell(events: AsyncIterator[AgentEvent], told: Told | None = None, limit_s: float = LIMIT_S) -> Told:
    """Read a run to its end; how it failed is kept."""
    told = told if told is not None else Told()
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            async for event in events:
                told.events.append(event)
                told.at.append(time.monotonic() - began)
    except RunEnded as error:
        told.ended = error
    return told


class Rig:
    """A rehearsal model, a model on it, and a pool."""

    def __init__(self, server: RehearsalServer, settings: Settings) -> None:
        self.server = server
        self.settings = settings
        self.client = ModelClient(settings, {})
        self.pool = ToolPool(settings.tool_threads, settings.tool_queue_s, settings.quarantine)
        model = self.client.resolve("rehearsal", server.url)
        assert model is not None
        self.model: Model = model

    def agent(self, tools: list[Any] | None = None, **given: Any) -> PydanticAgent:
        agent: Agent[Any, Any] = Agent(self.model, name="test", tools=tools or (), **given)
        return PydanticAgent(agent, "test", self.settings, self.pool)

    async def run(self, *lines: str, tools: list[Any] | None = None, **given: Any) -> Told:
        ctx = context("\n".join(lines), **given)
        return await tell(self.agent(tools).run(ctx))

    def history(self, *entries: HistoryEntry) -> list[HistoryEntry]:
        return list(entries)

    @property
    def stats(self) -> dict[str, Any]:
        return self.server.app.stats.snapshot(requests=True)

    def sent(self, at: int = -1) -> list[dict[str, Any]]:
        """The messages of a request as the model got them."""
        return json.loads(bytes(self.stats["last_requests"][at]))["messages"]

    async def close(self) -> None:
        await self.client.aclose()
        self.pool.close(0.0)


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Poll until it holds; at most `limit_s` seconds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)
