"""What a tool's arguments cost while a model writes them in chunks, from the model's event to the store's door."""

import gc
import json
import time
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from holdfast.agents import PydanticAgent
from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.digest import Digest
from holdfast.domain.ids import RunKey
from holdfast.engine.appender import Appender
from holdfast.engine.budgets import Budget
from holdfast.engine.telling import scope_of
from holdfast.engine.translate import Translator
from holdfast.ports.clock import SystemClock
from holdfast.ports.probe import Probe
from holdfast.ports.store import Appended, Claim, Fence, RunSpec, Status
from holdfast.telemetry import NULL
from holdfast.tools import ToolPool
from tests.agents.support import context

CHUNK = "kelp and anchor " * 16


class Nowhere:
    """A store that takes everything and keeps nothing: what it costs is not the question."""

    def __init__(self) -> None:
        self.head = 0

    async def append(self, key: Any, fence: Any, base: int, events: list[bytes], *_: Any) -> Appended:
        self.head = base + len(events)
        return Appended(Status.OK, self.head)


def chunked(chunks: int) -> PydanticAgent:
    """An agent whose model writes one call's arguments in so many chunks, then ends."""

    async def stream(messages: list[Any], info: AgentInfo):
        if len(messages) > 1:
            yield "done"
            return
        yield {0: DeltaToolCall(name="keep", json_args='{"text": "', tool_call_id="c")}
        for _ in range(chunks - 2):
            yield {0: DeltaToolCall(json_args=CHUNK)}
        yield {0: DeltaToolCall(json_args='"}')}

    async def keep(text: str) -> int:
        return len(text)

    return PydanticAgent(Agent(FunctionModel(stream_function=stream), tools=[keep]), "b", Settings(), ToolPool(1, 1.0))


async def carry(chunks: int) -> float:
    """CPU seconds of this process for one run, its whole way; the log is checked, or a fast loss would look good."""
    agent, owner = chunked(chunks), Owner(lambda *_: None)
    key = RunKey("local", "r_1")
    claim = Claim(key, "s", Fence(1, "t"), 0, 1, 3, RunSpec("go", "b"), 600_000, None, 0, 0, 0)
    settings, fold = Settings(), Digest()
    appender = Appender(Nowhere(), claim, settings, SystemClock(), owner, fold, NULL.follow(scope_of(claim)))
    seen: list[Any] = []
    put = appender.put
    appender.put = lambda kind, fields, *more: (seen.append((kind, fields)), put(kind, fields, *more))[1]

    async def at_once() -> None:
        return None

    translator = Translator(appender, Probe(), at_once, Budget(settings, fold))
    ctx = context("go")
    gc.collect()
    began = time.process_time()
    async for event in agent.run(ctx):
        await translator.take(event)
    await appender.flush()
    took = time.process_time() - began
    args = "".join(fields["delta"] for kind, fields in seen if kind == "tool.args")
    assert json.loads(args) == {"text": CHUNK * (chunks - 2)}
    assert [fields["result"] for kind, fields in seen if kind == "tool.finished"] == [len(CHUNK) * (chunks - 2)]
    await owner.close(1.0)
    return took


async def ratio(chunks: int, rounds: int, enough: float = 0.0) -> tuple[float, float, float]:
    """The best for `chunks` and for twice as many, taken in turns, and how many times dearer it is.

    Noise only adds, so one quiet pair is proof: it stops where the ratio is below `enough`.
    """
    await carry(100)  # what is loaded and compiled at the first use is paid for
    once, twice = float("inf"), float("inf")
    for _ in range(rounds):
        once = min(once, await carry(chunks))
        twice = min(twice, await carry(2 * chunks))
        if twice / once < enough:
            break
    return once, twice, twice / once
