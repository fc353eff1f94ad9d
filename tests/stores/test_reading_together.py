"""What many tails ask for at once is read at once, and one of them is no other one's trouble."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.domain.errors import StoreUnavailable
from holdfast.stores.sqlite.connect import connect
from holdfast.stores.sqlite.readers import Readers
from holdfast.stores.sqlite.tx import Tx
from holdfast.testing.clock import ManualClock

LIMIT_S = 20.0


class Counted(Readers):
    """Says how often a thread was asked to read."""

    reads = 0

    def _read(self, name: str, operation: Callable[[Tx], Any]) -> Any:
        self.reads += 1
        return super()._read(name, operation)


@pytest.fixture
async def readers(tmp_path: Path) -> AsyncIterator[Counted]:
    path = str(tmp_path / "some.db")
    connect(path).close()
    found = Counted(path, ManualClock())
    yield found
    found.close()


def one(tx: Tx) -> int:
    row = tx.one("SELECT 1 AS n")
    assert row is not None
    return int(row["n"])


async def answers(readers: Readers, *operations: Callable[[Tx], Any]) -> list[Any]:
    async with asyncio.timeout(LIMIT_S):
        asked = (readers.do_together("read", operation) for operation in operations)
        return await asyncio.gather(*asked, return_exceptions=True)


async def test_what_is_asked_in_one_turn_is_read_in_one_transaction(readers: Counted) -> None:
    """A commit of twenty runs wakes their twenty readers: twenty hops to threads cost more than the reading."""
    assert await answers(readers, *[one] * 20) == [1] * 20
    assert readers.reads < 20


async def test_a_read_that_fails_fails_no_other(readers: Counted) -> None:
    """A damaged page of one run's log must not cut off the readers of the others."""

    def damaged(tx: Tx) -> int:
        raise sqlite3.DatabaseError("database disk image is malformed")

    def wrong(tx: Tx) -> int:
        raise ValueError("ours")

    first, second, third, last = await answers(readers, one, damaged, wrong, one)
    assert (first, last) == (1, 1)
    assert isinstance(second, StoreUnavailable)
    assert isinstance(third, ValueError)


async def test_a_reader_that_cannot_begin_at_all_fails_those_who_asked(tmp_path: Path) -> None:
    """No descriptor is left for a connection: whoever waits is told so, and does not wait for ever."""

    class Unopened(Readers):
        def _read(self, name: str, operation: Callable[[Tx], Any]) -> Any:
            raise OSError(24, "Too many open files")

    found = Unopened(str(tmp_path / "some.db"), ManualClock())
    asked = [asyncio.create_task(found.do_together("read", one)) for _ in range(3)]
    done, waiting = await asyncio.wait(asked, timeout=LIMIT_S)
    found.close()
    assert not waiting
    assert [type(each.exception()) for each in done] == [OSError] * 3


async def test_a_long_read_is_not_waited_for_twice(readers: Counted) -> None:
    """What comes before it is answered without it."""
    seen: list[bool] = []
    go = threading.Event()

    def slow(tx: Tx) -> int:
        seen.append(go.wait(LIMIT_S))
        return 2

    def brief(tx: Tx) -> int:
        threading.Event().wait(0.01)  # more than a stint
        return one(tx)

    async with asyncio.timeout(LIMIT_S):
        loop = asyncio.get_running_loop()
        before = loop.create_task(readers.do_together("read", brief))
        after = loop.create_task(readers.do_together("read", slow))
        assert await before == 1
        assert not after.done()
        go.set()
        assert await after == 2
    assert seen == [True]


async def test_who_asks_a_store_that_closes_is_told(readers: Counted) -> None:
    """A wait that nobody ends would keep a client for ever."""
    begun: list[int] = []
    go = threading.Event()

    def held(tx: Tx) -> int:
        begun.append(1)
        go.wait(LIMIT_S)
        return 1

    async with asyncio.timeout(LIMIT_S):
        loop = asyncio.get_running_loop()
        busy = [loop.create_task(readers.do("hold", held)) for _ in range(3)]  # every thread
        while len(begun) < 3:
            await asyncio.sleep(0.005)
        waiting = [loop.create_task(readers.do_together("read", one)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
        closing = loop.run_in_executor(None, readers.close)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        go.set()
        await closing
        await asyncio.gather(*busy, return_exceptions=True)
        late = await asyncio.gather(readers.do_together("read", one), return_exceptions=True)
    assert all(isinstance(each, StoreUnavailable) for each in found)
    assert isinstance(late[0], StoreUnavailable)
