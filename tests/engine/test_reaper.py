"""When the reaper looks: each second, and when the next timer runs out."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import looptime
import pytest

from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.engine.reaper import Reaper
from holdfast.ports.agent import Result, TextDelta
from holdfast.ports.store import Status
from holdfast.telemetry import Log
from tests.engine.rig import QUICK, FunctionAgent, Rig


class Store:
    """Is due when the test says so, and counts who asks."""

    def __init__(self, due_ms: int | None) -> None:
        self.due_ms = due_ms
        self.failing = 0
        self.reaped = 0
        self.old = 0
        self.swept: list[float] = []

    async def reap(self, limit: int, grace_ms: int) -> list[Any]:
        self.reaped += 1
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable("away")
        return []

    async def sweep(self, *, older_than_ms: int, bytes_max: int, limit: int) -> int:
        self.swept.append(asyncio.get_running_loop().time())
        done = min(self.old, limit)
        self.old -= done
        return done

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


async def test_a_sweep_that_was_not_enough_is_followed_by_another() -> None:
    """One small step a minute would never keep up with a few runs a second: the store would grow for ever."""
    loop = looptime.patch_event_loop(asyncio.get_running_loop(), _enabled=False)
    loop.setup_looptime()
    with loop.looptime_enabled():
        store, owner = Store(None), Owner(lambda *_: None)
        store.old, began = 1_050, loop.time()
        owner.spawn(Reaper(store, QUICK, Log(stream=io.StringIO())).run(), "reaper")  # type: ignore[arg-type]
        await asyncio.sleep(90)
        assert store.old == 0
        assert store.swept[0] >= began + 59
        assert store.swept[-1] <= began + 75
        swept = len(store.swept)
        await asyncio.sleep(60)
        assert len(store.swept) == swept + 1
        await owner.close(1.0)


async def test_a_log_is_forgotten_when_its_time_is_over_and_what_was_said_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`retention_s` counts from the end of a run; the conversation and a run that works are not touched."""
    monkeypatch.setattr("holdfast.engine.reaper._SWEEP_EVERY_S", 0.1)

    async def work(ctx: Any) -> Any:
        yield TextDelta(0, f"you said {ctx.input}")
        if ctx.input == "hold":
            await asyncio.sleep(60)
        yield Result(f"you said {ctx.input}")

    settings = Settings(stop_grace_s=0.3, lease_s=2.0, renew_s=0.2, retention_s=0.2)
    async with Rig(FunctionAgent(work), settings=settings) as rig:
        working = await rig.start("hold", session="other")
        ended = await rig.start("hello", session="s")
        async with asyncio.timeout(10):
            while (await rig.store.read(ended, 0)).status is not Status.GONE:
                await asyncio.sleep(0.05)
        (entry,) = await rig.sessions.history("local", "s")
        assert [message.text for message in entry.messages] == ["hello", "you said hello"]
        assert (await rig.store.read(working, 0)).status is Status.OK
