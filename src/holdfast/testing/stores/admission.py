"""Caps: how many runs a tenant and a deployment may have, whoever asks at once."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import READY_TOPIC, Cap, Claim, Limits, RunningCaps, Status
from holdfast.testing.build import CALM, HOUR_MS, new_run
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import LONG_LEASE_MS, Holder, Rig

CREATES = 50
ROOM = 7
FIELDS = {
    Cap.RUNS_ACTIVE: "runs_active_max",
    Cap.RUNS_QUEUED: "runs_queued_max",
    Cap.TENANT_RUNS_ACTIVE: "tenant_active_max",
    Cap.TENANT_RUNS_QUEUED: "tenant_queued_max",
}


def capped(cap: Cap, limit: int) -> Limits:
    """Limits with one cap."""
    return replace(CALM, **{FIELDS[cap]: limit})


class Admission(StoreCase):
    """create and claim at their caps."""

    @pytest.mark.parametrize("cap", list(Cap))
    async def test_concurrent_creates_never_exceed_a_cap(self, rig: Rig, harness: StoreHarness, cap: Cap) -> None:
        """Fifty prompts to fifty sessions, through two handles: exactly as many as there is room for."""
        other = await harness.another()
        limits = capped(cap, ROOM)
        news = [new_run(f"s{n}", policy=list(Policy)[n % 4], limits=limits) for n in range(CREATES)]
        answers = await asyncio.gather(*((rig.store, other)[n % 2].create(new) for n, new in enumerate(news)))
        made = [new.key for new, a in zip(news, answers, strict=True) if a.status is Status.OK]
        refused = [a for a in answers if a.status is not Status.OK]
        assert len(made) == ROOM
        assert {a.status for a in refused} == {Status.OVERLOADED}
        assert {(a.shed.cap, a.shed.limit, a.shed.found) for a in refused if a.shed} == {(cap, ROOM, ROOM)}
        assert all(a.shed is not None and a.record is None for a in refused)
        assert {r.key for r in await rig.runs()} == set(made)
        assert len(await rig.store.list_sessions("local", limit=100)) == ROOM

    async def test_a_queued_cap_leaves_room_once_a_run_is_claimed(self, rig: Rig) -> None:
        """It counts what waits, at the head of its session or behind; not what runs."""
        two = capped(Cap.RUNS_QUEUED, 2)
        await rig.create("s1", limits=two)
        await rig.create("s1", limits=two)
        assert (await rig.store.create(new_run("s2", limits=two))).status is Status.OVERLOADED
        assert len(await rig.claim(n=5)) == 1
        await rig.create("s2", limits=two)
        assert (await rig.store.create(new_run("s3", limits=two))).status is Status.OVERLOADED

    async def test_a_waiting_run_is_unfinished(self, rig: Rig) -> None:
        """It holds its session and will come back: it counts as active, and neither as queued nor as running."""
        holder = await rig.running("s1")
        await holder.park()
        refused = await rig.store.create(new_run("s2", limits=capped(Cap.RUNS_ACTIVE, 1)))
        assert refused.status is Status.OVERLOADED
        await rig.create("s2", limits=capped(Cap.RUNS_QUEUED, 1))
        assert len(await rig.store.claim("w", 5, LONG_LEASE_MS, RunningCaps(deployment=1, tenant=1))) == 1

    @pytest.mark.parametrize("cap", [Cap.TENANT_RUNS_ACTIVE, Cap.TENANT_RUNS_QUEUED])
    async def test_a_tenant_at_its_cap_is_in_nobodys_way(self, rig: Rig, cap: Cap) -> None:
        """P12: another tenant's prompt is admitted, and the cap is judged before those of the deployment."""
        limits = replace(capped(cap, 2), runs_active_max=4)
        for n in range(2):
            await rig.create(f"s{n}", tenant="a", limits=limits)
        refused = await rig.store.create(new_run("s", tenant="a", limits=limits))
        assert refused.shed is not None
        assert refused.shed.cap is cap
        for n in range(2):
            await rig.create(f"s{n}", tenant="ab", limits=limits)  # its name begins as the other's
        refused = await rig.store.create(new_run("s", tenant="c", limits=limits))
        assert refused.shed is not None
        assert refused.shed.cap is Cap.RUNS_ACTIVE

    @pytest.mark.parametrize("cap", list(Cap))
    @pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.WAITING])
    async def test_a_superseding_prompt_takes_the_place_of_what_it_ends(self, rig: Rig, cap: Cap, state: State) -> None:
        """Whoever corrects a prompt at the cap must not be left with the wrong one running."""
        one = capped(cap, 1)
        first = await rig.create("s", limits=one)
        if state is not State.QUEUED:
            holder = await rig.take(first)
            await holder.start()
            if state is State.WAITING:
                await holder.park()
            if cap in (Cap.RUNS_QUEUED, Cap.TENANT_RUNS_QUEUED):
                await rig.create("other", limits=one)
        for _ in range(3):
            made = await rig.store.create(new_run("s", policy=Policy.SUPERSEDE, limits=one))
            assert made.status is Status.OK
        assert (await rig.store.create(new_run("s2", policy=Policy.SUPERSEDE, limits=one))).status is Status.OVERLOADED
        live = [r for r in await rig.runs() if not r.state.terminal and r.session == "s"]
        assert len(live) == (2 if state is State.RUNNING else 1)  # one that was told to stop, and one behind it
        record = await rig.record(first)
        assert record.stopping is Reason.SUPERSEDED if state is State.RUNNING else record.state is State.CANCELLED

    @pytest.mark.parametrize("cap", list(Cap))
    async def test_what_makes_no_run_is_not_refused_at_a_cap(self, rig: Rig, cap: Cap) -> None:
        """A steer, a repeat of either, a stop: they are told what they would be told at any other time."""
        one = capped(cap, 1)
        new = new_run("s", idempotency_key="k", body_hash="h", limits=one)
        assert (await rig.store.create(new)).status is Status.OK
        steer = new_run("s", policy=Policy.STEER, idempotency_key="k2", body_hash="h2", limits=one)
        assert (await rig.store.create(steer)).status is Status.STEERED
        assert (await rig.store.create(replace(steer, key=new_run().key))).status is Status.STEERED
        assert (await rig.store.create(replace(new, key=new_run().key))).status is Status.EXISTS
        assert (await rig.store.create(replace(new, body_hash="other"))).status is Status.CONFLICT
        assert (await rig.store.create(new_run("s", policy=Policy.REJECT, limits=one))).status is Status.BUSY
        assert (await rig.store.create(new_run("s2", limits=one))).status is Status.OVERLOADED
        assert (await rig.store.request_stop(new.key, Reason.STOPPED, "user")).status is Status.OK
        # The unread input of the run that was stopped is a run now: it was accepted before.
        (follow,) = [r for r in await rig.runs() if not r.state.terminal]
        assert (await rig.store.create(new_run("s2", limits=one))).status is Status.OVERLOADED
        assert (await rig.store.request_stop(follow.key, Reason.STOPPED, "user")).status is Status.OK
        await rig.create("s2", limits=one)

    async def test_a_refusal_says_how_fast_runs_end(self, rig: Rig) -> None:
        """The measure that a Retry-After stands on: ends of late, of the tenant where its own cap is reached."""
        cold = await rig.store.create(new_run("s", tenant="a", limits=replace(CALM, runs_active_max=1)))
        assert cold.status is Status.OK
        cold = await rig.store.create(new_run("s2", tenant="a", limits=replace(CALM, runs_active_max=1)))
        assert cold.shed is not None
        assert cold.shed.ends == 0
        assert cold.shed.ends_ms < 60_000
        for tenant, many in (("b", 3), ("a", 2)):
            for n in range(many):
                key = await rig.create(f"e{n}", tenant=tenant)
                await rig.store.request_stop(key, Reason.STOPPED, "user")
            await rig.pass_time(2_000)
        shed = (await rig.store.create(new_run("s2", tenant="a", limits=replace(CALM, runs_active_max=1)))).shed
        assert shed is not None
        assert shed.ends == 5
        assert 4_000 <= shed.ends_ms < 60_000
        shed = (await rig.store.create(new_run("s2", tenant="a", limits=capped(Cap.TENANT_RUNS_ACTIVE, 1)))).shed
        assert shed is not None
        assert shed.ends == 2
        assert 2_000 <= shed.ends_ms < 60_000
        await rig.pass_time(61_000)
        shed = (await rig.store.create(new_run("s2", tenant="a", limits=capped(Cap.TENANT_RUNS_ACTIVE, 1)))).shed
        assert shed is not None
        assert shed.ends == 0
        assert 65_000 <= shed.ends_ms < 120_000  # how long the one run of this tenant has been there

    async def test_claim_keeps_the_caps_on_running_runs(self, rig: Rig, harness: StoreHarness) -> None:
        """Many workers at once, tenants with more work than they may run: never over, and none in another's way."""
        other = await harness.another()
        for tenant in ("a", "b", "c"):
            for n in range(10):
                await rig.create(f"s{n}", tenant=tenant)
        caps = RunningCaps(deployment=8, tenant=3)
        stores = (rig.store, other)
        got = await asyncio.gather(*(stores[n % 2].claim(f"w{n}", 2, LONG_LEASE_MS, caps) for n in range(20)))
        tenants = [claim.key.tenant for batch in got for claim in batch]
        assert sorted(tenants.count(t) for t in "abc") == [2, 3, 3]

    async def test_a_tenant_at_its_running_cap_does_not_block_the_others(self, rig: Rig) -> None:
        """P12: its turn is passed over, however long its queue is and however early it came."""
        for n in range(5):
            await rig.create(f"s{n}", tenant="a")
        caps = RunningCaps(tenant=2)
        assert await self._tenants(rig, 10, caps) == ["a", "a"]
        for n in range(3):
            await rig.create(f"s{n}", tenant="b")
        assert await self._tenants(rig, 10, caps) == ["b", "b"]
        assert await self._tenants(rig, 10, caps) == []

    @pytest.mark.parametrize("how", ["finish", "park", "release", "reap"])
    @pytest.mark.parametrize("caps", [RunningCaps(tenant=1), RunningCaps(deployment=1)])
    async def test_a_run_that_leaves_running_makes_room(self, rig: Rig, how: str, caps: RunningCaps) -> None:
        """And wakes a worker at once: nobody sits out a poll because the deployment was at a cap."""
        limits = replace(CALM, attempts_max=2)
        first = await rig.create("s1", limits=limits)
        second = await rig.create("s2", limits=limits)
        (claim,) = await rig.store.claim("w", 5, LONG_LEASE_MS, caps)
        assert claim.key == first
        assert await rig.store.claim("w", 5, LONG_LEASE_MS, caps) == []
        holder = Holder(rig.store, claim)
        await holder.start()
        with rig.store.subscribe(READY_TOPIC) as wake:
            while await wake.wait(0.05):
                pass  # of before
            match how:
                case "finish":
                    await holder.finish()
                case "park":
                    await holder.park()
                case "release":
                    await holder.release()
                case _:
                    await rig.store.disown()
                    await rig.reap()
            assert await wake.wait(5)
        (claim,) = await rig.store.claim("w", 5, LONG_LEASE_MS, caps)
        assert claim.key == (first if how in ("release", "reap") else second)

    async def test_turns_go_round_at_the_caps(self, rig: Rig) -> None:
        """With room for one at a time, tenants take turns as they do without a cap."""
        for tenant, many in (("a", 4), ("b", 2)):
            for n in range(many):
                await rig.create(f"s{n}", tenant=tenant, limits=replace(CALM, session_wait_ms=HOUR_MS))
        order: list[str] = []
        caps = RunningCaps(deployment=1, tenant=1)
        while claims := await rig.store.claim("w", 5, LONG_LEASE_MS, caps):
            (claim,) = claims
            order.append(claim.key.tenant)
            await rig.complete(Holder(rig.store, claim))
        assert sorted(order[:2]) == sorted(order[2:4]) == ["a", "b"]
        assert order[4:] == ["a", "a"]

    async def test_health_says_how_deep_the_queue_is_and_how_old(self, rig: Rig) -> None:
        """Of the whole deployment, and since when a worker could have taken the first: not since its first attempt."""
        assert await self._queue(rig) == (0, 0)
        holder = await rig.running("s1", limits=replace(CALM, session_wait_ms=HOUR_MS))
        await holder.park()
        await rig.pass_time(10_000)
        await rig.create("s1")
        other = await rig.create("s2", tenant="b")
        await rig.pass_time(5_000)
        ready, age_ms = await self._queue(rig)
        assert ready == 1
        assert 5_000 <= age_ms < 10_000
        await rig.store.resume(holder.key, [])
        assert (await self._queue(rig))[0] == 2
        await rig.store.request_stop(other, Reason.STOPPED, "user")
        ready, age_ms = await self._queue(rig)
        assert ready == 1
        assert age_ms < 5_000

    async def _queue(self, rig: Rig) -> tuple[int, int]:
        facts = await rig.store.health()
        return facts["ready"], facts["ready_age_ms"]

    async def _tenants(self, rig: Rig, n: int, caps: RunningCaps) -> list[str]:
        claims: list[Claim] = await rig.store.claim("w", n, LONG_LEASE_MS, caps)
        keys: list[RunKey] = [claim.key for claim in claims]
        return [key.tenant for key in keys]
