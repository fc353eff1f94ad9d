"""Claiming and holding: who gets which run, and how a worker learns that it still has it."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

from msgspec.structs import replace

from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Fence, Held, Status
from holdfast.testing.build import CALM, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import LEASE_MS, LONG_LEASE_MS, Rig


class Claiming(StoreCase):
    """claim, renew, heart, workers."""

    async def test_a_claim_carries_all_that_a_worker_needs(self, rig: Rig) -> None:
        """The worker reads nothing else before it begins."""
        key = await rig.create("s1", text="hi", limits=replace(CALM, deadline_ms=60_000, attempts_max=3))
        (claim,) = await rig.store.claim("w1", 1, LEASE_MS)
        assert (claim.key, claim.session, claim.base) == (key, "s1", 1)
        assert (claim.spec.input, claim.attempt, claim.attempts_max) == ("hi", 1, 3)
        assert (claim.checkpoint, claim.decisions) == (None, [])
        assert 0 < claim.deadline_left_ms <= 60_000
        assert claim.fence.epoch >= 1
        assert claim.fence.claim
        record = await rig.record(key)
        assert (record.state, record.worker, record.epoch) == (State.RUNNING, "w1", claim.fence.epoch)
        assert record.lease_left_ms is not None
        assert 0 < record.lease_left_ms <= LEASE_MS

    async def test_nothing_ready_is_an_empty_answer(self, rig: Rig) -> None:
        """A worker with free room asks often; that is no error."""
        assert await rig.claim() == []
        await rig.running()
        await rig.create()
        assert await rig.claim(n=10) == []

    async def test_claim_hands_out_at_most_n(self, rig: Rig) -> None:
        """A worker gets no more than it has room for."""
        for n in range(5):
            await rig.create(f"s{n}")
        assert [len(await rig.claim(n=2)) for _ in range(4)] == [2, 2, 1, 0]

    async def test_one_tenant_is_served_in_order(self, rig: Rig) -> None:
        """First come, first served, also within one millisecond."""
        keys = [await rig.create(f"s{n}") for n in range(20)]
        got = [h.key for h in await rig.claim(n=7)] + [h.key for h in await rig.claim(n=20)]
        assert got == keys

    async def test_tenants_take_turns(self, rig: Rig) -> None:
        """P12: each tenant with ready work gets every n-th run, whoever came first."""
        for tenant, many in (("a", 6), ("b", 3), ("c", 1)):
            for n in range(many):
                await rig.create(f"s{n}", tenant=tenant)
        order = [(await rig.claim())[0].key.tenant for _ in range(10)]
        assert sorted(order[:3]) == ["a", "b", "c"]
        assert sorted(order[3:5]) == ["a", "b"]
        assert sorted(order[5:7]) == ["a", "b"]
        assert order[7:] == ["a"] * 3

    async def test_tenants_take_turns_within_one_claim(self, rig: Rig) -> None:
        """A claim of many runs is as fair as many claims of one."""
        for tenant in ("a", "b"):
            for n in range(6):
                await rig.create(f"s{n}", tenant=tenant)
        tenants = [h.key.tenant for h in await rig.claim(n=4)]
        assert sorted(tenants) == ["a", "a", "b", "b"]

    async def test_a_flood_of_one_tenant_does_not_starve_another(self, rig: Rig) -> None:
        """[READ] 10,000 runs of one tenant in a FIFO: another tenant's run times out in the queue."""
        for n in range(300):
            await rig.create(f"s{n}", tenant="flood")
        await rig.claim(n=10)
        late = await rig.create("s", tenant="small")
        assert late in [h.key for h in await rig.claim(n=2)]

    async def test_each_claim_has_its_own_fence(self, rig: Rig) -> None:
        """[MC] a failover may give two claims one epoch; the random token still tells them apart."""
        key = await rig.create()
        first = await rig.take(key)
        await first.release()
        second = await rig.take(key)
        assert second.fence.epoch > first.fence.epoch
        assert second.fence.claim != first.fence.claim

    async def test_a_claim_starts_at_the_head_and_the_last_checkpoint(self, rig: Rig) -> None:
        """A new attempt goes on from what the last one made durable."""
        first = await rig.running()
        await first.append(text(0, "a"), checkpoint=b"one")
        await first.append(text(0, "b"), checkpoint=b"two")
        at = first.head
        await first.say("c")
        await first.release()
        second = await rig.take(first.key)
        assert (second.claim.checkpoint, second.claim.checkpoint_seq) == (b"two", at)
        assert second.claim.base == first.head

    async def test_renew_keeps_a_lease(self, rig: Rig) -> None:
        """A worker that renews keeps its run for as long as it lives."""
        holder = await rig.running(lease_ms=LEASE_MS)
        for _ in range(8):
            assert await rig.pass_time(LEASE_MS // 2) == []
            (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
            assert (renewal.held, renewal.lost, renewal.stop) == (holder.held, False, None)
        assert (await holder.finish()).status is Status.OK

    async def test_renew_answers_each_in_order(self, rig: Rig) -> None:
        """Lost, held and stopped runs in one call, one round trip."""
        held = [await rig.running(f"s{n}") for n in range(4)]
        await held[0].finish()
        await held[1].release()
        await rig.store.request_stop(held[3].key, Reason.STOPPED, "user")
        answers = await rig.store.renew("w", [h.held for h in held], LEASE_MS)
        assert [a.held for a in answers] == [h.held for h in held]
        assert [a.lost for a in answers] == [True, True, False, False]
        assert [a.stop for a in answers[2:]] == [None, Reason.STOPPED]
        assert answers[3].stop_by == "user"
        assert answers[3].stop_at > 0

    async def test_renew_with_another_token_is_lost(self, rig: Rig) -> None:
        """[MC] the fence is epoch and token, also for leases."""
        holder = await rig.running(lease_ms=LEASE_MS)
        forged = Held(holder.key, Fence(holder.fence.epoch, "c_other"))
        (answer,) = await rig.store.renew("w", [forged], LONG_LEASE_MS)
        assert answer.lost
        assert [r.outcome for r in await rig.pass_time(LEASE_MS + 1_000)] == ["failed"]

    async def test_a_heart_renews_from_a_thread(self, rig: Rig) -> None:
        """Heartbeats must not depend on the event loop, which an agent may block."""
        holder = await rig.running(lease_ms=LEASE_MS)
        heart = rig.store.heart()
        try:
            for _ in range(3):
                await rig.pass_time(LEASE_MS // 2)
                facts = {"load": 1}
                (one,) = await rig.in_thread(heart.renew, "w", [holder.held], LEASE_MS, facts)
                assert not one.lost
            await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
            (one,) = await rig.in_thread(heart.renew, "w", [holder.held], LEASE_MS, {})
            assert one.stop is Reason.STOPPED
            await holder.finish(State.CANCELLED)
            (one,) = await rig.in_thread(heart.renew, "w", [holder.held], LEASE_MS, {})
            assert one.lost
        finally:
            await rig.in_thread(heart.close)

    async def test_workers_shows_who_reported_in_the_last_minute(self, rig: Rig) -> None:
        """`holdfast top` and /readyz say who is there, and forget who is not."""
        heart = rig.store.heart()
        try:
            await rig.in_thread(heart.renew, "w1", [], LEASE_MS, {"agents": ["echo"]})
            await rig.pass_time(40_000)
            await rig.in_thread(heart.renew, "w2", [], LEASE_MS, {"agents": []})
        finally:
            await rig.in_thread(heart.close)
        found = {w.worker: w.facts for w in await rig.store.workers()}
        assert found == {"w1": {"agents": ["echo"]}, "w2": {"agents": []}}
        await rig.pass_time(40_000)
        assert [w.worker for w in await rig.store.workers()] == ["w2"]

    async def test_disown_expires_the_leases_of_dead_workers_only(self, rig: Rig) -> None:
        """A process seen to exit is proven dead: nobody waits for its leases, and no other's are touched."""
        dead = await rig.running("s1", worker="dead", limits=replace(CALM, attempts_max=2))
        alive = await rig.running("s2", worker="alive")
        assert await rig.store.disown(["dead"]) == 1
        assert [(r.key, r.outcome) for r in await rig.reap()] == [(dead.key, "requeued")]
        assert (await dead.say("x")).status is Status.FENCED
        assert (await alive.say("x")).status is Status.OK

    async def test_disown_without_names_expires_every_lease(self, rig: Rig) -> None:
        """Whoever holds the lock of the deployment knows that all former workers are gone."""
        for n in range(3):
            await rig.running(f"s{n}", worker=f"w{n}", limits=replace(CALM, attempts_max=2))
        assert await rig.store.disown() == 3
        assert [r.outcome for r in await rig.reap()] == ["requeued"] * 3
        assert len(await rig.claim(n=5)) == 3
