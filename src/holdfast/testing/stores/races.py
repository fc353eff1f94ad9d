"""Races: many at once, on several handles, and never two where one is allowed."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Claim, Created, RunStore, Status
from holdfast.testing.build import CALM, new_run
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import LONG_LEASE_MS, Rig

CREATES = 50
RUNS = 1_000
CLAIMERS = 5


class Races(StoreCase):
    """Concurrent creates, claims, stops and ends."""

    @pytest.mark.parametrize("policy", list(Policy))
    async def test_concurrent_creates_leave_one_active_run(
        self, rig: Rig, harness: StoreHarness, policy: Policy
    ) -> None:
        """Fifty prompts to one session at once: one is active, each has an answer, and all end."""
        other = rig.at(await harness.another())
        limits = replace(CALM, queued_behind_max=CREATES)
        news = [new_run(policy=policy, limits=limits, text=f"{n}") for n in range(CREATES)]
        answers = await asyncio.gather(*((rig, other)[n % 2].store.create(new) for n, new in enumerate(news)))
        accepted = [new.key for new, a in zip(news, answers, strict=True) if a.status is Status.OK]
        _assert_answers(policy, answers)
        active = await rig.store.active("local", "s")
        assert active is not None
        assert active.key in accepted
        queued = [r for r in await rig.runs() if r.state is State.QUEUED]
        assert sorted(r.position or 0 for r in queued) == list(range(len(queued)))
        assert len(await rig.store.claim("w", 10, LONG_LEASE_MS)) == 1
        await rig.store.disown()
        await rig.reap()
        await other.drive()
        assert {r.key for r in await rig.runs()} >= set(accepted)
        assert await rig.store.active("local", "s") is None

    async def test_racing_supersedes_against_a_worker_that_runs_them(self, rig: Rig) -> None:
        """P4: a superseded run writes nothing after its successor started, however fast prompts come."""
        accepted: list[RunKey] = []
        done = asyncio.Event()

        async def prompts() -> None:
            for n in range(40):
                accepted.append(await rig.create(policy=Policy.SUPERSEDE, text=f"{n}"))
                await asyncio.sleep(0)
            done.set()

        async def worker() -> None:
            while True:
                over = done.is_set()
                holders = await rig.claim(n=4)
                assert len(holders) <= 1
                for holder in holders:
                    await rig.complete(holder)
                if over and not holders:
                    return
                await asyncio.sleep(0)

        await asyncio.gather(prompts(), worker())
        states = [await rig.state(key) for key in accepted]
        assert all(s.terminal for s in states)
        assert states[-1] is State.COMPLETED
        history = await rig.store.history("local", "s")
        assert sorted(e.run for e in history) == sorted(k.run for k in accepted)

    async def test_each_run_is_claimed_once(self, rig: Rig, harness: StoreHarness) -> None:
        """A thousand runs, five claimers on two handles: nothing runs twice, nothing is left."""
        other = await harness.another()
        news = [new_run(f"s{n}", tenant=f"t{n % 3}") for n in range(RUNS)]
        created = await asyncio.gather(*(rig.store.create(new) for new in news))
        assert all(c.status is Status.OK for c in created)

        async def claimer(store: RunStore, worker: str) -> list[Claim]:
            mine: list[Claim] = []
            while batch := await store.claim(worker, 7, LONG_LEASE_MS):
                mine += batch
            return mine

        claimers = [claimer((rig.store, other)[n % 2], f"w{n}") for n in range(CLAIMERS)]
        got = [claim.key for batch in await asyncio.gather(*claimers) for claim in batch]
        assert len(got) == RUNS
        assert set(got) == {new.key for new in news}

    async def test_a_stop_racing_a_claim_ends_the_run(self, rig: Rig) -> None:
        """[MC] claim sees the flag: either the run ended in the queue, or its worker is told."""
        for n in range(20):
            key = await rig.create(f"s{n}")
            holders, _ = await asyncio.gather(rig.claim(), rig.store.request_stop(key, Reason.STOPPED, "user"))
            for holder in holders:
                assert (await holder.finish(State.COMPLETED)).status is Status.STOP
                assert (await holder.finish(State.CANCELLED)).status is Status.OK
            assert await rig.ended(key) == (State.CANCELLED, Reason.STOPPED)

    async def test_a_release_racing_a_stop_ends_the_run(self, rig: Rig) -> None:
        """[MC] a drain and a Stop at once: the work does not start again."""
        for n in range(20):
            holder = await rig.running(f"s{n}")
            await asyncio.gather(holder.release(), rig.store.request_stop(holder.key, Reason.STOPPED, "user"))
            assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)
            assert await rig.claim() == []

    async def test_a_park_racing_a_stop_ends_the_run(self, rig: Rig) -> None:
        """[MC] either the park was refused and the worker ends it, or the stop found it waiting."""
        for n in range(20):
            holder = await rig.running(f"s{n}")
            parked, _ = await asyncio.gather(holder.park(), rig.store.request_stop(holder.key, Reason.STOPPED, "user"))
            if parked.status is Status.STOP:
                await holder.finish(State.CANCELLED)
            assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)
            assert await rig.store.active("local", f"s{n}") is None

    async def test_a_create_racing_the_end_before_it_is_promoted(self, rig: Rig) -> None:
        """[MC] whichever comes first, the new run is at the head and can be claimed."""
        for n in range(20):
            holder = await rig.running(f"s{n}")
            key, _ = await asyncio.gather(rig.create(f"s{n}"), holder.finish())
            next_one = await rig.begin(key)
            await next_one.finish()

    async def test_stops_racing_a_promotion_leave_the_session_alive(self, rig: Rig) -> None:
        """[MC] the promoted run is ended while it is promoted: the slot must not stay with it."""
        for n in range(10):
            holder = await rig.running(f"s{n}")
            behind = [await rig.create(f"s{n}") for _ in range(3)]
            stops = [rig.store.request_stop(k, Reason.STOPPED, "user") for k in behind]
            await asyncio.gather(stops[0], holder.finish(), stops[1], stops[2])
            assert await rig.store.active("local", f"s{n}") is None
            assert (await rig.begin(await rig.create(f"s{n}"))).claim.base == 1

    async def test_edits_racing_a_claim_are_either_in_it_or_refused(self, rig: Rig) -> None:
        """A client that was told OK must see its text answered."""
        for n in range(20):
            key = await rig.create(f"s{n}", text="old")
            status, holders = await asyncio.gather(rig.store.edit_input(key, "new"), rig.claim())
            assert holders[0].claim.spec.input == ("new" if status is Status.OK else "old")


def _assert_answers(policy: Policy, answers: list[Created]) -> None:
    statuses = sorted(a.status for a in answers)
    match policy:
        case Policy.REJECT:
            assert statuses == [Status.BUSY] * (CREATES - 1) + [Status.OK]
        case Policy.STEER:
            assert statuses == [Status.OK] + [Status.STEERED] * (CREATES - 1)
        case Policy.ENQUEUE | Policy.SUPERSEDE:
            assert statuses == [Status.OK] * CREATES
