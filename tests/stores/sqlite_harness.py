"""SQLite under the conformance suite: handles on one file or in memory, one clock for all of them."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from holdfast.ports.store import RunStore
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing import ManualClock


def _lose(topics: Iterable[str]) -> None:
    """Takes the place of whoever publishes wakes."""


class SqliteHarness:
    durable = True

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self._url = f"sqlite:///{directory / 'holdfast.db'}"
        self._handles: list[SqliteStore] = []

    async def open(self) -> RunStore:
        return await self.another()

    async def another(self) -> RunStore:
        store = await SqliteStore.open(self._url, clock=self.clock)
        self._handles.append(store)
        return store

    async def reopen(self) -> RunStore:
        await self.close()
        return await self.another()

    async def advance(self, ms: int) -> None:
        self.clock.advance(ms)

    def lose_wakes(self) -> None:
        for store in self._handles:
            store._hub.publish = _lose
            store._writer._publish = [_lose]

    async def close(self) -> None:
        handles, self._handles = self._handles, []
        for store in handles:
            await asyncio.wait_for(store.close(), 10)


class MemoryHarness(SqliteHarness):
    """One connection: every handle is the first one."""

    durable = False

    def __init__(self) -> None:
        super().__init__(Path())
        self._url = "sqlite://:memory:"

    async def another(self) -> RunStore:
        if not self._handles:
            await super().another()
        return self._handles[0]
