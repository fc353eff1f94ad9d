"""Who is woken on Redis: the worker that a stop concerns, a few of those that have nothing to do; never everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest_asyncio

from holdfast.domain.runs import Reason
from holdfast.ports.store import CONTROL_TOPIC, READY_TOPIC, STOP_TOPIC, Wake, worker_topic
from holdfast.testing.rig import LONG_LEASE_MS, Rig
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness

WAKE_S = 5.0
WORKERS = 10


@pytest_asyncio.fixture
async def harness(redis_server: RedisServer) -> AsyncIterator[RedisHarness]:
    harness = RedisHarness(redis_server)
    yield harness
    await harness.close()


@pytest_asyncio.fixture
async def rig(harness: RedisHarness) -> AsyncIterator[Rig]:
    rig = Rig(await harness.open(), advance=harness.advance)
    yield rig
    await rig.close()


async def _woken(wakes: dict[str, Wake]) -> list[str]:
    """Those that were, now or within a moment."""
    return [name for name, wake in wakes.items() if await wake.wait(0.1)]


async def _listen(stack: ExitStack, rig: Rig, harness: RedisHarness, topic: str, names: list[str]) -> dict[str, Wake]:
    """A wake for each worker, subscribed."""
    wakes = {name: stack.enter_context(rig.store.subscribe(worker_topic(topic, name))) for name in names}
    for name in names:
        async with asyncio.timeout(WAKE_S):
            while not harness.client.pubsub_channels(f"*t:{worker_topic(topic, name)}"):
                await asyncio.sleep(0.01)
    await _woken(wakes)
    return wakes


async def test_a_run_wakes_two_of_the_idle_workers(rig: Rig, harness: RedisHarness) -> None:
    """Each run would else cost a claim by every worker that has nothing to do."""
    names = [f"w{n}" for n in range(WORKERS)]
    with ExitStack() as stack:
        wakes = await _listen(stack, rig, harness, READY_TOPIC, names)
        for name in [*names, "dead", "gone"]:
            assert await rig.store.claim(name, 5, LONG_LEASE_MS) == []
        await rig.create("s0")
        first = await _woken(wakes)
        assert len(first) == 2
        await rig.create("s1")
        second = await _woken(wakes)
        assert len(second) == 2
        assert not set(first) & set(second)
        assert len(await rig.store.claim(first[0], 5, LONG_LEASE_MS)) == 2
        await rig.create("s2")
        third = await _woken(wakes)
        assert len(third) == 2
        assert not set(third) & {first[1], *second}


async def test_a_full_worker_is_not_counted_on(rig: Rig, harness: RedisHarness) -> None:
    """Who got all it asked for has no room: the wake is for another."""
    with ExitStack() as stack:
        wakes = await _listen(stack, rig, harness, READY_TOPIC, ["full", "idle"])
        for name in ("full", "idle"):
            await rig.store.claim(name, 1, LONG_LEASE_MS)
        await rig.create("s0")
        assert len(await rig.store.claim("full", 1, LONG_LEASE_MS)) == 1
        assert await rig.store.claim("idle", 1, LONG_LEASE_MS) == []
        await _woken(wakes)
        await rig.create("s1")
        assert await _woken(wakes) == ["idle"]


async def test_a_stop_and_a_steer_wake_the_worker_that_holds_the_run(rig: Rig, harness: RedisHarness) -> None:
    """Each of the others would renew all that it holds, and its supervisor would be in a hurry for nothing."""
    holder = await rig.running(worker="w1")
    with ExitStack() as stack:
        control = await _listen(stack, rig, harness, CONTROL_TOPIC, ["w1", "w2"])
        stops = await _listen(stack, rig, harness, STOP_TOPIC, ["w1", "w2"])
        await rig.store.steer(holder.key, "more")
        assert await _woken(control) == ["w1"]
        assert await _woken(stops) == []
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert await _woken(stops) == ["w1"]
        assert await _woken(control) == ["w1"]
