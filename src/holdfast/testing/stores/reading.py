"""Reading: pages of a log, exact from any offset, and honest where they cannot be."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

import pytest

from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import (
    CONTROL_TOPIC,
    READY_TOPIC,
    Status,
    Wake,
    list_topic,
    run_topic,
)
from holdfast.testing.build import new_run, text
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import Rig

WAKE_S = 3.0


class Reading(StoreCase):
    """read, get, list_runs, subscribe, health."""

    async def test_a_page_has_what_follows_the_offset(self, rig: Rig) -> None:
        """P3: exactly the missing suffix, from any offset."""
        holder = await rig.running()
        await holder.append(*[text(0, f"{n}") for n in range(10)])
        whole = (await rig.store.read(holder.key, 0)).events
        assert len(whole) == 12
        for after in range(13):
            page = await rig.store.read(holder.key, after)
            assert page.status is Status.OK
            assert page.events == whole[after:]
            assert len(page.epochs) == len(page.events)
            assert (page.first, page.head) == (after + 1, 12)
            assert (page.epoch, page.state) == (holder.fence.epoch, State.RUNNING)
            assert not page.resync

    async def test_a_page_has_at_most_limit_events(self, rig: Rig) -> None:
        """A long log is read in parts that fit together."""
        holder = await rig.running()
        await holder.append(*[text(0, f"{n}") for n in range(98)])
        seqs: list[int] = []
        while len(seqs) < 100:
            page = await rig.store.read(holder.key, len(seqs), limit=7)
            assert 1 <= len(page.events) <= 7
            assert page.head == 100
            seqs += [decode_event(e)["seq"] for e in page.events]
        assert seqs == list(range(1, 101))

    async def test_a_page_of_an_ended_run_says_so(self, rig: Rig) -> None:
        """A reader knows from the page that nothing more comes."""
        holder = await rig.running()
        await holder.finish()
        page = await rig.store.read(holder.key, holder.head)
        assert (page.status, page.events, page.first) == (Status.OK, [], holder.head + 1)
        assert (page.head, page.state) == (holder.head, State.COMPLETED)

    async def test_each_event_has_the_epoch_that_wrote_it(self, rig: Rig) -> None:
        """The event id `<seq>-<epoch>` tells two writers of one seq apart."""
        first = await rig.running()
        await first.say("a")
        await first.release()
        second = await rig.begin(first.key)
        page = await rig.store.read(first.key, 1)
        assert page.epochs == [first.fence.epoch] * 2 + [second.fence.epoch]
        assert page.epoch == second.fence.epoch

    async def test_an_event_id_of_this_log_needs_no_resync(self, rig: Rig) -> None:
        """A reader that comes back with the id of any event goes on after it."""
        first = await rig.running()
        await first.say("a")
        await first.release()
        await rig.begin(first.key)
        epochs = (await rig.store.read(first.key, 0)).epochs
        for seq, epoch in enumerate(epochs, start=1):
            page = await rig.store.read(first.key, seq, epoch=epoch)
            assert (page.resync, page.first) == (False, seq + 1)

    @pytest.mark.parametrize(("seq", "epochs_on"), [(3, 1), (2, 7), (4, 0), (400, 0)])
    async def test_an_event_id_that_the_log_never_had_says_resync(self, rig: Rig, seq: int, epochs_on: int) -> None:
        """After a failover the reader's seq may have other content, or none: it must not be joined silently."""
        holder = await rig.running()
        await holder.say("a")
        page = await rig.store.read(holder.key, seq, epoch=holder.fence.epoch + epochs_on)
        assert page.status is Status.OK
        assert page.resync

    async def test_an_offset_beyond_the_head_says_resync(self, rig: Rig) -> None:
        """A plain seq that the log never had is no better: waiting for it would be silence, and a tail says so."""
        holder = await rig.running()
        page = await rig.store.read(holder.key, holder.head + 1)
        assert (page.status, page.events, page.resync) == (Status.OK, [], True)
        assert not (await rig.store.read(holder.key, holder.head)).resync
        async with asyncio.timeout(5):
            pages = [page async for page in rig.store.tail(holder.key, holder.head + 1)]
        assert [p.resync for p in pages] == [True]

    async def test_an_unknown_run_has_no_page(self, rig: Rig) -> None:
        """Never an empty log for a wrong id."""
        nobody = RunKey("local", "r_none")
        page = await rig.store.read(nobody, 0)
        assert (page.status, page.events) == (Status.UNKNOWN, [])
        assert await rig.store.get(nobody) is None

    async def test_another_handle_reads_what_was_acknowledged(self, rig: Rig, harness: StoreHarness) -> None:
        """A gateway sees a worker's event as soon as the worker knows that it is durable."""
        other = await harness.another()
        holder = await rig.running()
        for n in range(20):
            await holder.say(f"{n}")
            page = await other.read(holder.key, holder.head - 1)
            assert [decode_event(e)["text"] for e in page.events] == [f"{n}"]

    async def test_runs_are_listed_newest_first(self, rig: Rig) -> None:
        """And in pages that neither repeat nor miss one, also within one millisecond."""
        keys = [await rig.create(f"s{n % 3}") for n in range(25)]
        newest_first = list(reversed(keys))
        found: list[RunKey] = []
        for _ in range(6):
            after = found[-1].run if found else ""
            page = await rig.store.list_runs("local", limit=5, after=after)
            found += [r.key for r in page]
        assert found == newest_first
        of_session = await rig.store.list_runs("local", session="s1")
        assert [r.key for r in of_session] == [k for k in newest_first if keys.index(k) % 3 == 1]

    async def test_runs_are_listed_by_state(self, rig: Rig) -> None:
        """`holdfast runs` asks for the running ones."""
        done = await rig.running("s1")
        await done.finish()
        running = await rig.running("s2")
        queued = await rig.create("s2")
        for state, key in (
            (State.COMPLETED, done.key),
            (State.RUNNING, running.key),
            (State.QUEUED, queued),
        ):
            assert [r.key for r in await rig.store.list_runs("local", state=state)] == [key]
        assert await rig.store.list_runs("local", state=State.WAITING) == []
        assert await rig.store.list_runs("local", session="s1", state=State.QUEUED) == []

    async def test_a_record_survives_what_it_carries(self, rig: Rig) -> None:
        """Every field of the spec comes back: Unicode, quotes, nested metadata."""
        new = new_run(text='π "quoted"\n\u2028 \U0001f4a1 \x00')
        await rig.store.create(new)
        assert (await rig.record(new.key)).spec == new.spec
        (claim,) = await rig.store.claim("w", 1, 10_000)
        assert claim.spec == new.spec

    async def test_health_is_facts(self, rig: Rig) -> None:
        """/readyz and `holdfast check` show them."""
        facts = await rig.store.health()
        assert isinstance(facts["kind"], str)


class Waking(StoreCase):
    """subscribe: hints that spare the polling."""

    async def test_a_wait_without_news_ends_in_time(self, rig: Rig) -> None:
        """Every wait has a limit."""
        with rig.store.subscribe(READY_TOPIC) as wake:
            loop = asyncio.get_running_loop()
            start = loop.time()
            assert await wake.wait(0.05) is False
            assert loop.time() - start < 1.0

    async def test_each_topic_wakes(self, rig: Rig) -> None:
        """Workers, executors, readers and lists are woken by what concerns them."""
        key = new_run().key
        topics = (READY_TOPIC, CONTROL_TOPIC, run_topic(key), list_topic("local"))
        with (
            rig.store.subscribe(topics[0]) as ready,
            rig.store.subscribe(topics[1]) as control,
            rig.store.subscribe(topics[2]) as log,
            rig.store.subscribe(topics[3]) as changes,
        ):
            await rig.create(run=key.run)
            assert await ready.wait(WAKE_S)
            assert await log.wait(WAKE_S)
            assert await changes.wait(WAKE_S)
            holder = await rig.begin(key)
            await _drain(log, changes)
            await holder.say("x")
            assert await log.wait(WAKE_S)
            await rig.store.request_stop(key, Reason.STOPPED, "user")
            assert await control.wait(WAKE_S)
            await _drain(log, changes)
            await holder.finish(State.CANCELLED)
            assert await log.wait(WAKE_S)
            assert await changes.wait(WAKE_S)

    async def test_a_promotion_wakes_the_workers(self, rig: Rig) -> None:
        """The next run of a session starts when the one before it ends, not at the next poll."""
        holder = await rig.running()
        await rig.create()
        with rig.store.subscribe(READY_TOPIC) as ready:
            await _drain(ready)
            await holder.finish()
            assert await ready.wait(WAKE_S)

    async def test_a_wake_before_the_wait_is_kept(self, rig: Rig) -> None:
        """Between the look and the wait something may happen: it must not cost the whole timeout."""
        with rig.store.subscribe(READY_TOPIC) as ready:
            await rig.create()
            await asyncio.sleep(0.1)
            assert await ready.wait(WAKE_S)

    async def test_wakes_reach_other_handles(self, rig: Rig, harness: StoreHarness) -> None:
        """A gateway's create wakes a worker in another process, a worker's event wakes a gateway's reader."""
        other = rig.at(await harness.another())
        with other.store.subscribe(READY_TOPIC) as ready:
            key = await rig.create()
            assert await ready.wait(WAKE_S)
        with rig.store.subscribe(run_topic(key)) as log:
            holder = await other.begin(key)
            assert await log.wait(WAKE_S)
            await _drain(log)
            await holder.say("x")
            assert await log.wait(WAKE_S)

    async def test_a_wake_serves_one_loop_of_many(self, rig: Rig) -> None:
        """Every subscriber of a topic is woken, not only the first."""
        with rig.store.subscribe(READY_TOPIC) as one, rig.store.subscribe(READY_TOPIC) as two:
            await rig.create()
            assert all(await asyncio.gather(one.wait(WAKE_S), two.wait(WAKE_S)))


async def _drain(*wakes: Wake) -> None:
    """Take the hints that are still on their way."""
    for wake in wakes:
        for _ in range(100):
            if not await wake.wait(0.05):
                break
