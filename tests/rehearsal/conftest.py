"""A rehearsal model on a real socket for each test, and proof that it leaves nothing behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from holdfast.rehearsal import RehearsalServer

OURS = {"RequestResponseCycle.run_asgi", "Exchange._watch"}


@pytest_asyncio.fixture
async def server(caplog: pytest.LogCaptureFixture) -> AsyncIterator[RehearsalServer]:
    async with RehearsalServer() as server:
        yield server
    left = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") in OURS]
    assert left == [], "the server left tasks behind"
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []
