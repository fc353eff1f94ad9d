"""Retention: logs are forgotten by age and size, and their readers are told."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason
from holdfast.ports.store import Status
from holdfast.testing.build import HOUR_MS, new_run, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import Rig

NO_BYTES_LIMIT = 2**50
KILOBYTE = "x" * 1_000


class Retention(StoreCase):
    """sweep."""

    async def test_a_log_is_forgotten_by_the_age_of_its_end(self, rig: Rig) -> None:
        """Age counts from the terminal event: a long run is not forgotten the moment it ends."""
        old = await rig.running("s1")
        await old.finish()
        long = await rig.running("s2")
        await rig.leap(HOUR_MS)
        await long.finish()
        assert await rig.sweep(older_than_ms=HOUR_MS // 2, bytes_max=NO_BYTES_LIMIT) == 1
        assert (await rig.store.read(old.key, 0)).status is Status.GONE
        assert (await rig.store.read(long.key, 0)).status is Status.OK

    async def test_a_forgotten_log_is_gone_for_every_reader(self, rig: Rig) -> None:
        """[READ] never a gap, never an end without a terminal event: GONE, from every offset."""
        key = await _ended(rig, "s", 20)
        await rig.leap(HOUR_MS)
        await rig.sweep(older_than_ms=1_000, bytes_max=NO_BYTES_LIMIT)
        for after in (0, 5, 22):
            page = await rig.store.read(key, after)
            assert (page.status, page.events) == (Status.GONE, [])
            statuses = [page.status async for page in rig.store.tail(key, after)]
            assert statuses == [Status.GONE]
        assert await rig.store.get(key) is None
        answer = await rig.store.request_stop(key, Reason.STOPPED, "user")
        assert answer.status is Status.GONE
        assert await rig.store.steer(key, "x") is Status.GONE

    async def test_logs_are_forgotten_oldest_first_until_they_fit(self, rig: Rig) -> None:
        """A full disk takes the oldest; what fits stays."""
        keys = []
        for n in range(10):
            keys.append(await _ended(rig, f"s{n}", 10))
            await rig.leap(1_000)
        swept = await rig.sweep(older_than_ms=100 * HOUR_MS, bytes_max=55_000)
        statuses = [(await rig.store.read(k, 0)).status for k in keys]
        assert 4 <= swept <= 7
        assert statuses == [Status.GONE] * swept + [Status.OK] * (10 - swept)

    async def test_a_run_that_has_not_ended_is_never_forgotten(self, rig: Rig) -> None:
        """Whatever its size or age, somebody is waiting for it."""
        running = await rig.running("s1")
        for _ in range(20):
            await running.say(KILOBYTE)
        waiting = await rig.running("s2")
        await waiting.park()
        queued = await rig.create("s1")
        await rig.leap(1_000 * HOUR_MS)
        assert await rig.sweep(older_than_ms=0, bytes_max=0) == 0
        for key in (running.key, waiting.key, queued):
            assert (await rig.store.read(key, 0)).status is Status.OK
        assert (await running.finish()).status is Status.OK

    async def test_a_sweep_does_at_most_limit(self, rig: Rig) -> None:
        """Retention in small steps holds up nobody."""
        for n in range(7):
            await _ended(rig, f"s{n}", 1)
        await rig.leap(HOUR_MS)
        for expected in (3, 3, 1, 0):
            done = await rig.store.sweep(older_than_ms=1_000, bytes_max=NO_BYTES_LIMIT, limit=3)
            assert done == expected

    async def test_a_reader_in_the_middle_is_told(self, rig: Rig) -> None:
        """[READ] retention in chunks: a reader that has half of the log gets GONE, not silence."""
        key = await _ended(rig, "s", 20)
        await rig.leap(HOUR_MS)
        pages = rig.store.tail(key, 0, limit=5)
        first = await anext(pages)
        assert len(first.events) == 5
        await rig.sweep(older_than_ms=1_000, bytes_max=NO_BYTES_LIMIT)
        async with asyncio.timeout(5):
            rest = [page async for page in pages]
        assert rest[-1].status is Status.GONE
        assert sum(len(p.events) for p in rest) < 17

    async def test_history_outlives_the_log(self, rig: Rig) -> None:
        """The conversation goes on after the events of its first runs were forgotten."""
        key = await _ended(rig, "s", 3)
        await rig.leap(HOUR_MS)
        await rig.sweep(older_than_ms=1_000, bytes_max=NO_BYTES_LIMIT)
        assert [e.run for e in await rig.store.history("local", "s")] == [key.run]
        again = await rig.create()
        assert await rig.drive() == [again]

    async def test_a_forgotten_id_makes_no_second_run(self, rig: Rig) -> None:
        """The id of a run whose log is gone must not come back with another log under it."""
        new = new_run()
        await rig.store.create(new)
        await rig.drive()
        await rig.leap(HOUR_MS)
        await rig.sweep(older_than_ms=1_000, bytes_max=NO_BYTES_LIMIT)
        again = await rig.store.create(new)
        assert again.status in {Status.GONE, Status.EXISTS, Status.CONFLICT}
        assert (await rig.store.read(new.key, 0)).status is Status.GONE


async def _ended(rig: Rig, session: str, kilobytes: int) -> RunKey:
    """A run that wrote so much and ended."""
    holder = await rig.running(session)
    for _ in range(kilobytes):
        await holder.append(text(0, KILOBYTE))
    await holder.finish()
    return holder.key
