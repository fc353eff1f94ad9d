"""A store, a worker and a reaper on one loop, with agents made of plain functions."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.events import TERMINAL, decode_event
from holdfast.domain.ids import RunKey
from holdfast.engine.reaper import Reaper
from holdfast.engine.sessions import Sessions, StartRequest
from holdfast.engine.worker import Worker
from holdfast.ports.agent import AgentEvent, AgentInfo, RunContext
from holdfast.ports.clock import SystemClock
from holdfast.ports.store import RunRecord
from holdfast.stores.sqlite import SqliteStore
from holdfast.telemetry import Log

QUICK = Settings(stop_grace_s=0.3, lease_s=2.0, renew_s=0.2, store_outage_s=2.0)


class FunctionAgent:
    """An agent that is one async generator function."""

    def __init__(
        self, work: Callable[[RunContext], AsyncIterator[AgentEvent]], name: str = "test", *, resumable: bool = False
    ) -> None:
        """Take the function; resumable if it yields checkpoints."""
        self.name = name
        self.kind = "test" if resumable else ""
        self.resumable = resumable
        self._work = work

    def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        """Call it."""
        return self._work(ctx)


class Rig:
    """Use as an async context manager."""

    def __init__(
        self,
        *agents: FunctionAgent,
        settings: Settings = QUICK,
        url: str = "sqlite://:memory:",
        wrap: Callable[[SqliteStore], Any] | None = None,
    ) -> None:
        """Nothing is opened yet; `wrap` puts something between the store and the worker and reaper."""
        self._wrap = wrap
        self.settings = settings
        self.agents = agents
        self.lines = io.StringIO()
        self.log = Log(stream=self.lines)
        self._url = url
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Rig:
        """Open the store and start everything."""
        self.store = await SqliteStore.open(self._url, own=True)
        self._stack.push_async_callback(self.store.close)
        self.owner = Owner(lambda name, error: self.log.write("task_failed", task=name, error=repr(error)))
        self._stack.push_async_callback(self.owner.close, 1.0)
        self.wrapped = self._wrap(self.store) if self._wrap else self.store
        clock = SystemClock()
        self.worker = Worker(self.wrapped, self.agents, self.settings, self.log, clock, "w-test")
        self.owner.spawn(Reaper(self.wrapped, self.settings, self.log).run(), "reaper")
        running = self.owner.spawn(self.worker.run(), "worker")

        async def end() -> None:
            await self.worker.close(0)
            await asyncio.wait([running], timeout=5)

        self._stack.push_async_callback(end)
        infos = [AgentInfo(a.name, a.kind, "", a.resumable) for a in self.agents]
        self.sessions = Sessions(self.store, self.settings, self.log, lambda: infos, self.worker)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End everything."""
        await self._stack.aclose()

    async def start(self, text: str = "hello", **fields: Any) -> RunKey:
        """Start a run."""
        created = await self.sessions.start("local", StartRequest(input=text, **fields))
        assert created.record is not None
        return created.record.key

    async def end(self, key: RunKey, limit_s: float = 8.0) -> RunRecord:
        """Its record once it has ended."""
        record = await self.sessions.wait(key, limit_s)
        assert record.state.terminal, f"{key.run} is {record.state} after {limit_s} s\n{self.lines.getvalue()}"
        return record

    async def events(self, key: RunKey) -> list[dict[str, Any]]:
        """Its log so far, checked: contiguous, at most one terminal event and that last."""
        events: list[dict[str, Any]] = []
        while True:
            page = await self.store.read(key, len(events))
            events += [decode_event(data) for data in page.events]
            if not page.events:
                break
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        ends = [i for i, e in enumerate(events) if e["type"] in TERMINAL]
        assert ends in ([], [len(events) - 1])
        return events

    async def until(self, key: RunKey, kind: str, limit_s: float = 5.0) -> dict[str, Any]:
        """The first event of `kind` once it is in the log."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        while loop.time() < until:
            for event in await self.events(key):
                if event["type"] == kind:
                    return event
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {kind} in {limit_s} s: {await self.events(key)}\n{self.lines.getvalue()}")
