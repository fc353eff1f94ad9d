"""When the reaper looks: each second, and when the next timer runs out."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from holdfast.aio import Owner
from holdfast.domain.errors import StoreUnavailable
from holdfast.engine.reaper import Reaper
from holdfast.telemetry import Log
from tests.engine.rig import QUICK


class Store:
    """Is due when the test says so, and counts who asks."""

    def __init__(self, due_ms: int | None) -> None:
        self.due_ms = due_ms
        self.failing = 0
        self.reaped = 0

    async def reap(self, limit: int, grace_ms: int) -> list[Any]:
        self.reaped += 1
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable("away")
        return []

    async def next_due_ms(self) -> int | None:
        return self.due_ms


@pytest.mark.parametrize(("due_ms", "pause_s"), [(None, 1.0), (60_000, 1.0), (200, 0.2), (0, 0.02)])
async def test_it_looks_again_when_the_next_timer_runs_out(due_ms: int | None, pause_s: float) -> None:
    """Else every bound of a run's end would be a second longer than it says."""
    store = Store(due_ms)
    assert await Reaper(store, QUICK, Log(stream=io.StringIO()))._reap() == pause_s  # type: ignore[arg-type]


async def test_a_store_that_fails_is_asked_again() -> None:
    """A reaper that died of its first outage would leave every later run without an end."""
    store, lines = Store(0), io.StringIO()
    store.failing = 1
    owner = Owner(lambda *_: None)
    owner.spawn(Reaper(store, QUICK, Log(stream=lines)).run(), "reaper")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while store.reaped < 3:
            await asyncio.sleep(0.01)
    await owner.close(1.0)
    assert "store_unavailable" in lines.getvalue()
