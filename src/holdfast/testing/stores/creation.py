"""Creating runs: what a repeat does, who is refused, who waits."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from holdfast.domain.events import EventType
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM, new_run
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import Rig, timeless

QUEUED_BEHIND_MAX = 16
FOLLOWERS = 8


class Creation(StoreCase):
    """create: ids, idempotency keys, policies, admission."""

    async def test_a_new_run_is_queued_at_the_head_of_its_session(self, rig: Rig) -> None:
        """A client that got the answer can read the run at once, on every path."""
        new = new_run("s1", text="hi")
        created = await rig.store.create(new)
        assert created.status is Status.OK
        assert created.superseded == []
        assert created.record is not None
        assert timeless(created.record) == timeless(await rig.record(new.key))
        record = created.record
        assert (record.key, record.session, record.spec) == (new.key, "s1", new.spec)
        assert (record.state, record.reason, record.stopping) == (State.QUEUED, None, None)
        assert (record.seq, record.position, record.ended_at) == (1, 0, None)
        assert record.ready_at is not None

    async def test_the_log_begins_with_run_created(self, rig: Rig) -> None:
        """A reader that comes at once sees the run, not an empty log."""
        key = await rig.create("s1", text="hi", policy=Policy.SUPERSEDE)
        first, *rest = await rig.log(key)
        assert rest == []
        assert (first["seq"], first["run"], first["type"]) == (1, key.run, EventType.RUN_CREATED)
        assert (first["session"], first["agent"], first["policy"], first["input"]) == (
            "s1",
            "echo",
            "supersede",
            "hi",
        )

    async def test_repeating_a_create_finds_the_same_run(self, rig: Rig) -> None:
        """A reply that was lost is asked for again; the prompt must not run twice."""
        new = new_run()
        await rig.store.create(new)
        again = await rig.store.create(new)
        assert again.status is Status.EXISTS
        assert again.record is not None
        assert again.record.key == new.key
        assert len(await rig.runs()) == 1

    async def test_one_id_with_another_body_is_a_conflict(self, rig: Rig) -> None:
        """Two different prompts under one id would be one lost prompt."""
        new = new_run(body_hash="h1")
        await rig.store.create(new)
        other = await rig.store.create(replace(new, body_hash="h2"))
        assert other.status is Status.CONFLICT
        assert len(await rig.runs()) == 1

    async def test_an_idempotency_key_finds_its_run(self, rig: Rig) -> None:
        """A client that repeats a request gets the run of the first one, whatever id the server chose since."""
        first = new_run(idempotency_key="k", body_hash="h")
        second = new_run(idempotency_key="k", body_hash="h")
        await rig.store.create(first)
        again = await rig.store.create(second)
        assert again.status is Status.EXISTS
        assert again.record is not None
        assert again.record.key == first.key
        assert await rig.store.get(second.key) is None

    async def test_an_idempotency_key_lives_longer_than_its_run_is_active(self, rig: Rig) -> None:
        """The key lives as long as the run record: a late repeat must not start the prompt again."""
        first = new_run(idempotency_key="k", body_hash="h")
        await rig.store.create(first)
        await rig.drive()
        again = await rig.store.create(new_run(idempotency_key="k", body_hash="h"))
        assert again.status is Status.EXISTS
        assert again.record is not None
        assert (again.record.key, again.record.state) == (first.key, State.COMPLETED)

    async def test_an_idempotency_key_with_another_body_is_a_conflict(self, rig: Rig) -> None:
        """Otherwise a client's mistake would answer the wrong question."""
        first = new_run(idempotency_key="k", body_hash="h1")
        await rig.store.create(first)
        other = await rig.store.create(new_run(idempotency_key="k", body_hash="h2"))
        assert other.status is Status.CONFLICT
        assert other.record is not None
        assert other.record.key == first.key
        assert len(await rig.runs()) == 1

    async def test_an_idempotency_key_is_looked_up_before_the_policy(self, rig: Rig) -> None:
        """A repeat must not be refused because of the run that it made itself, and must not supersede it."""
        for policy in (Policy.REJECT, Policy.SUPERSEDE, Policy.STEER):
            kept = f"k-{policy}"
            new = new_run(f"s-{policy}", policy=policy, idempotency_key=kept, body_hash="h")
            await rig.store.create(new)
            again = await rig.store.create(replace(new, key=new_run().key))
            assert again.status is Status.EXISTS, policy
            assert await rig.state(new.key) is State.QUEUED, policy
            assert await rig.store.inbox(new.key) == [], policy

    async def test_an_idempotency_key_is_looked_up_before_admission(self, rig: Rig) -> None:
        """A full deployment still says what became of a request that it took."""
        one = replace(CALM, runs_active_max=1)
        new = new_run("s1", idempotency_key="k", body_hash="h", limits=one)
        await rig.store.create(new)
        again = await rig.store.create(replace(new, key=new_run().key))
        assert again.status is Status.EXISTS

    async def test_reject_on_a_busy_session_makes_nothing(self, rig: Rig) -> None:
        """The client is told which run is in its way."""
        active = await rig.create()
        refused = await rig.store.create(new_run(policy=Policy.REJECT))
        assert refused.status is Status.BUSY
        assert refused.record is not None
        assert refused.record.key == active
        assert len(await rig.runs()) == 1

    async def test_reject_on_an_idle_session_runs(self, rig: Rig) -> None:
        """A session whose run has ended is not busy."""
        await rig.create(policy=Policy.REJECT)
        await rig.drive()
        await rig.create(policy=Policy.REJECT)

    async def test_enqueued_runs_wait_in_order(self, rig: Rig) -> None:
        """Prompts of one session are answered in the order in which they were sent."""
        keys = [await rig.create(text=f"{n}") for n in range(4)]
        assert [(await rig.record(k)).position for k in keys] == [0, 1, 2, 3]
        assert [(await rig.record(k)).ready_at is not None for k in keys] == [True] + [False] * 3
        assert await rig.drive() == keys

    async def test_enqueue_keeps_at_most_sixteen_behind(self, rig: Rig) -> None:
        """Every queue has a size; the seventeenth is told so, and the others stay."""
        keys = [await rig.create() for _ in range(1 + QUEUED_BEHIND_MAX)]
        refused = await rig.store.create(new_run())
        assert refused.status is Status.BUSY
        assert refused.record is not None
        assert refused.record.key == keys[0]
        await rig.complete(await rig.take(keys[0]))
        last = await rig.create()
        assert await rig.drive() == [*keys[1:], last]

    async def test_a_parked_run_keeps_its_session_busy(self, rig: Rig) -> None:
        """[MC] waiting holds the slot: claim, park, create must not make two active runs."""
        holder = await rig.running()
        await holder.park()
        refused = await rig.store.create(new_run(policy=Policy.REJECT))
        assert refused.status is Status.BUSY
        behind = await rig.create()
        assert await rig.claim() == []
        active = await rig.store.active("local", "s")
        assert active is not None
        assert (active.key, active.state) == (holder.key, State.WAITING)
        assert (await rig.record(behind)).position == 1

    async def test_runs_active_is_a_bound_of_the_deployment(self, rig: Rig) -> None:
        """Load beyond the bound is refused at the door instead of timing out inside."""
        three = replace(CALM, runs_active_max=3)
        keys = [await rig.create(f"s{n}", limits=three) for n in range(3)]
        refused = await rig.store.create(new_run("s4", limits=three))
        assert refused.status is Status.OVERLOADED
        assert refused.record is None
        assert await rig.store.get_session("local", "s4") is None
        await rig.store.request_stop(keys[1], Reason.STOPPED, "test")
        await rig.create("s4", limits=three)

    async def test_concurrent_repeats_of_one_create_make_one_run(self, rig: Rig) -> None:
        """A client that retries while the first request still runs is a race like any other."""
        new = new_run(idempotency_key="k", body_hash="h")
        others = [replace(new, key=new_run().key) for _ in range(20)]
        answers = await asyncio.gather(*(rig.store.create(n) for n in others))
        assert sorted(a.status for a in answers) == [Status.EXISTS] * 19 + [Status.OK]
        (made,) = await rig.runs()
        assert {a.record.key for a in answers if a.record} == {made.key}

    async def test_of_many_that_follow_one_run_at_once_one_does(self, rig: Rig, harness: StoreHarness) -> None:
        """Two requests continue one response: the second must not be given what the first one asked."""
        last = await rig.create("s1")
        other = await harness.another()
        policies = (Policy.SUPERSEDE, Policy.ENQUEUE)
        news = [new_run("s1", policy=policies[n % 2], follows=last.run) for n in range(FOLLOWERS)]
        answers = await asyncio.gather(*((rig.store, other)[n % 2].create(new) for n, new in enumerate(news)))
        found = [a.status for a in answers]
        assert sorted(found) == [*[Status.MOVED] * (FOLLOWERS - 1), Status.OK]
        first = news[found.index(Status.OK)]
        again = await rig.store.create(first)
        assert again.status is Status.EXISTS, "a repeat is told of what it made, not that it is late"

    async def test_nothing_follows_a_run_of_another_session_or_none(self, rig: Rig) -> None:
        """Whoever holds an id that is not the session's makes nothing and ends nothing."""
        other, last = await rig.create("s2"), await rig.create("s1")
        for run in (other.run, "r_none"):
            refused = await rig.store.create(new_run("s1", policy=Policy.SUPERSEDE, follows=run))
            assert (refused.status, refused.record) == (Status.MOVED, None)
        assert (await rig.record(last)).state is State.QUEUED
        assert [r.key for r in await rig.runs()] == [last, other]
