"""Tailing: every reader gets every event once, in order, whenever it comes and however slow it is."""

# ruff: noqa: S101, S311 - a test says what must hold, and its chance guards nothing

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Page, RunStore, Status
from holdfast.testing.build import text
from holdfast.testing.harness import LosesWakes, StoreCase, StoreHarness
from holdfast.testing.rig import Holder, Rig

SECONDS_MAX = 8.0


class Tailing(StoreCase):
    """tail."""

    async def test_a_tail_of_an_ended_run_is_its_log(self, rig: Rig) -> None:
        """And it ends, with the terminal event as the last."""
        holder = await rig.running()
        await holder.append(*[text(0, f"{n}") for n in range(50)])
        await holder.finish()
        for after in (0, 1, 30, holder.head - 1):
            seen = await _tail(rig.store, holder.key, after, limit=7)
            assert seen == list(range(after + 1, holder.head + 1))

    async def test_a_tail_after_the_terminal_event_ends_at_once(self, rig: Rig) -> None:
        """A reader that has everything must not be kept."""
        holder = await rig.running()
        await holder.finish()
        assert await _tail(rig.store, holder.key, holder.head) == []

    async def test_a_tail_follows_a_run_from_the_queue_to_its_end(self, rig: Rig) -> None:
        """A reader may come before any worker does."""
        key = await rig.create()
        tail = rig.spawn(_tail(rig.store, key, 0))
        await asyncio.sleep(0.02)
        holder = await rig.begin(key)
        for n in range(5):
            await holder.say(f"{n}")
        await holder.finish()
        assert await tail == list(range(1, holder.head + 1))

    async def test_a_tail_sees_an_end_from_outside(self, rig: Rig) -> None:
        """Stopped in the queue, reaped, superseded: a reader is told, whoever wrote the end."""
        lost = await rig.running("s2")
        queued = await rig.create("s1")
        tails = [rig.spawn(_tail(rig.store, k, 0)) for k in (queued, lost.key)]
        await asyncio.sleep(0.02)
        await rig.store.request_stop(queued, Reason.STOPPED, "user")
        await rig.store.disown()
        await rig.reap()
        assert await tails[0] == [1, 2]
        assert await tails[1] == [1, 2, 3]

    async def test_many_tails_under_concurrent_appends_miss_and_repeat_nothing(
        self, rig: Rig, harness: StoreHarness
    ) -> None:
        """P3: from random offsets, at random times, at random speeds, on two handles, all get the same."""
        seed = random.randrange(2**32)
        print(f"seed={seed}")  # noqa: T201 - repeats a failure
        chance = random.Random(seed)
        other = await harness.another()
        holders = [await rig.running(f"s{n}") for n in range(3)]
        writers = [rig.spawn(_write(h, random.Random(chance.random()))) for h in holders]
        tails = []
        for n in range(24):
            await asyncio.sleep(chance.random() * 0.02)
            holder = holders[n % 3]
            after = chance.randrange(holder.head + 1)
            store = chance.choice([rig.store, other])
            reading = _tail(store, holder.key, after, limit=chance.choice([1, 3, 50, 500]), chance=chance)
            tails.append((holder, after, rig.spawn(reading)))
        await asyncio.gather(*writers)
        for holder, after, task in tails:
            assert await task == list(range(after + 1, holder.head + 1))

    async def test_an_idle_tail_gives_its_reader_a_turn(self, rig: Rig) -> None:
        """About once a second, so that it can send a keepalive or look whether its client is there."""
        holder = await rig.running()
        async with asyncio.timeout(SECONDS_MAX), _closing(rig.store.tail(holder.key, 0)) as pages:
            first = await anext(pages)
            assert len(first.events) == 2
            idle = await anext(pages)
            assert (idle.status, idle.events, idle.first, idle.head) == (Status.OK, [], 3, 2)

    async def test_an_unknown_run_has_no_tail(self, rig: Rig) -> None:
        """It says so and ends."""
        pages = await _pages(rig.store, RunKey("local", "r_none"), 0)
        assert [p.status for p in pages] == [Status.UNKNOWN]

    async def test_a_slow_tail_holds_up_nobody(self, rig: Rig) -> None:
        """P10: a reader that stops reading costs neither the run nor another reader."""
        holder = await rig.running()
        async with _closing(rig.store.tail(holder.key, 0)) as stuck:
            await anext(stuck)
            tail = rig.spawn(_tail(rig.store, holder.key, 0))
            for n in range(50):
                await holder.append(*[text(0, f"{n}") for _ in range(20)])
            await holder.finish()
            assert await tail == list(range(1, holder.head + 1))

    async def test_an_abandoned_tail_leaves_nothing_behind(self, rig: Rig) -> None:
        """Readers that go away in the middle are the normal case."""
        holder = await rig.running()
        for _ in range(20):
            async with _closing(rig.store.tail(holder.key, 0)) as pages:
                await anext(pages)
            task = rig.spawn(_tail(rig.store, holder.key, 0))
            await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await holder.finish()
        assert await _tail(rig.store, holder.key, 0) == [1, 2, 3]

    async def test_a_lost_wake_costs_a_second(self, rig: Rig, harness: StoreHarness) -> None:
        """Wakes are hints: without any, a reader is at most about a second late."""
        if not isinstance(harness, LosesWakes):
            pytest.skip("this harness cannot lose wakes")
        other = await harness.another()
        harness.lose_wakes()
        holder = await rig.running()
        loop = asyncio.get_running_loop()
        for store in (rig.store, other):
            async with asyncio.timeout(SECONDS_MAX), _closing(store.tail(holder.key, holder.head)) as pages:
                waiting = rig.spawn(_next_event(pages))
                await asyncio.sleep(0.05)
                await holder.say("x")
                start = loop.time()
                assert await waiting == holder.head
                assert loop.time() - start < 1.5


@contextlib.asynccontextmanager
async def _closing(pages: AsyncIterator[Page]) -> AsyncIterator[AsyncIterator[Page]]:
    try:
        yield pages
    finally:
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


async def _next_event(pages: AsyncIterator[Page]) -> int:
    async for page in pages:
        if page.events:
            return page.first
    raise AssertionError("the tail ended")


async def _pages(store: RunStore, key: RunKey, after: int, limit: int = 500) -> list[Page]:
    async with asyncio.timeout(SECONDS_MAX), _closing(store.tail(key, after, limit)) as pages:
        return [page async for page in pages]


async def _tail(
    store: RunStore, key: RunKey, after: int, limit: int = 500, chance: random.Random | None = None
) -> list[int]:
    """Read to the end at some speed; the seqs in the order of arrival."""
    seen: list[int] = []
    last: Page | None = None
    async with asyncio.timeout(SECONDS_MAX), _closing(store.tail(key, after, limit)) as pages:
        async for page in pages:
            last = page
            assert page.status is Status.OK
            assert len(page.events) <= limit
            assert page.first == after + len(seen) + 1
            seen += [decode_event(e)["seq"] for e in page.events]
            if chance is not None and chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
    if seen:
        assert last is not None
        assert last.state.terminal
    return seen


async def _write(holder: Holder, chance: random.Random) -> None:
    """About half a second of a run, in batches of random size at random times, then its end."""
    for n in range(60):
        await holder.append(*[text(0, f"{n} ") for _ in range(chance.randrange(1, 6))])
        await asyncio.sleep(chance.random() * 0.015)
    await holder.finish(State.COMPLETED)
