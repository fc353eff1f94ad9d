"""Reaping: runs whose worker is gone go on or end, whoever is left to look."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from holdfast.domain.events import EventType
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM, discarded, model_responded, text, tool_called, tool_finished
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import LEASE_MS, Rig

LOST = (State.FAILED, Reason.WORKER_LOST)
TWO = replace(CALM, attempts_max=2)


class Reaping(StoreCase):
    """reap: leases and attempts, the event it composes, and time in which nobody looked."""

    async def test_nothing_due_is_nothing_done(self, rig: Rig) -> None:
        """Any process may call it at any time."""
        assert await rig.reap() == []
        holder = await rig.running(lease_ms=LEASE_MS)
        await rig.create()
        assert await rig.pass_time(LEASE_MS - 1_000) == []
        assert (await holder.say("x")).status is Status.OK

    async def test_a_lost_lease_requeues_the_run(self, rig: Rig) -> None:
        """Attempts are left: the next worker goes on."""
        holder = await rig.running(limits=TWO, lease_ms=LEASE_MS)
        (done,) = await rig.pass_time(LEASE_MS + 1_000)
        assert (done.key, done.session, done.outcome) == (holder.key, "s", "requeued")
        record = await rig.record(holder.key)
        assert (record.state, record.position, record.lease_left_ms) == (State.QUEUED, 0, None)
        again = await rig.begin(holder.key)
        assert again.fence.epoch > holder.fence.epoch
        assert again.claim.attempt == 2
        assert (await again.finish()).status is Status.OK

    async def test_spent_attempts_end_the_run(self, rig: Rig) -> None:
        """A run that kills its worker each time ends, and says so."""
        key = await rig.create(limits=TWO)
        for expected in ("requeued", "failed"):
            await rig.begin(key)
            await rig.store.disown()
            (done,) = await rig.reap()
            assert (done.key, done.outcome) == (key, expected)
        assert await rig.ended(key) == LOST
        assert await rig.claim() == []

    async def test_a_claim_without_run_started_is_no_attempt(self, rig: Rig) -> None:
        """[MC] a claim whose reply is lost burned an attempt: worker_lost for a run that never began."""
        key = await rig.create(limits=replace(CALM, attempts_max=1))
        for _ in range(4):
            holder = await rig.take(key)
            assert holder.claim.attempt == 1
            await rig.store.disown()
            assert [r.outcome for r in await rig.reap()] == ["requeued"]
        holder = await rig.begin(key)
        await rig.store.disown()
        assert [r.outcome for r in await rig.reap()] == ["failed"]
        assert await rig.ended(key) == LOST

    async def test_the_reaper_composes_the_terminal_event_from_the_log(self, rig: Rig) -> None:
        """What the worker made durable is not lost with it: partial, usage, an honest receipt."""
        holder = await rig.running()
        await holder.append(
            text(0, "one "),
            model_responded(1, 10, 5),
            tool_called("c1"),
            tool_finished("c1", "r"),
            tool_called("c2", "slow"),
            model_responded(2, 20, 7),
            text(1, "two"),
        )
        await rig.store.disown()
        await rig.reap()
        last = (await rig.log(holder.key))[-1]
        assert (last["type"], last["reason"], last["partial"]) == ("run.failed", "worker_lost", "one two")
        assert {"code", "message", "cause", "retryable", "remedy"} <= last["error"].keys()
        assert last["usage"] == {"requests": 2, "input_tokens": 30, "output_tokens": 12}
        receipt = last["receipt"]
        assert (receipt["by"], receipt["upstream_closed_ms"]) == ("reaper", None)
        assert receipt["tools"] == [{"call": "c2", "name": "slow", "ended": "abandoned"}]
        record = await rig.record(holder.key)
        assert (record.usage, record.error, record.receipt) == (last["usage"], last["error"], receipt)
        assert record.ttft_ms is not None
        closed = (await rig.log(holder.key))[-2]
        assert (closed["type"], closed["call"], closed["name"]) == ("tool.finished", "c2", "slow")
        assert (closed["outcome"], closed["seq"]) == ("interrupted", last["seq"] - 1)
        assert isinstance(closed["duration_ms"], int)

    async def test_the_reaper_does_not_count_what_was_discarded(self, rig: Rig) -> None:
        """[READ] epoch 1 showed 'Hello wor', epoch 2 regenerates it: the partial has it once."""
        first = await rig.running(limits=TWO)
        await first.append(text(0, "Hello wor"), tool_called("c1"))
        await rig.store.disown()
        await rig.reap()
        second = await rig.begin(first.key)
        await second.append(discarded(parts=[0], calls=["c1"]), text(1, "Hello"))
        await rig.store.disown()
        await rig.reap()
        last = (await rig.log(first.key))[-1]
        assert last["partial"] == "Hello"
        assert last["receipt"]["tools"] == []

    async def test_an_ended_run_frees_its_session(self, rig: Rig) -> None:
        """[MC] ending a run by any step promotes the next."""
        await rig.running()
        behind = await rig.create()
        await rig.store.disown()
        await rig.reap()
        await rig.begin(behind)

    async def test_a_requeued_run_keeps_its_session(self, rig: Rig) -> None:
        """Nothing of the same session overtakes it."""
        holder = await rig.running(limits=TWO)
        behind = await rig.create()
        await rig.store.disown()
        await rig.reap()
        assert (await rig.record(behind)).position == 1
        assert await rig.drive() == [holder.key, behind]

    async def test_reap_does_at_most_limit(self, rig: Rig) -> None:
        """A thousand lost runs must not be one long step; the rest is due at once."""
        for n in range(7):
            await rig.running(f"s{n}")
        await rig.store.disown()
        counts = [len(await rig.reap(limit=3)) for _ in range(4)]
        assert counts == [3, 3, 1, 0]

    async def test_time_in_which_nobody_reaped_did_not_pass(self, rig: Rig) -> None:
        """[READ] store paused 8 s + a renewal 2.5 s old > lease 10 s: mass false takeover."""
        holder = await rig.running(lease_ms=LEASE_MS, limits=TWO)
        await rig.pass_time(5_000)
        await rig.leap(60_000)
        assert await rig.reap() == []
        assert await rig.pass_time(4_000) == []
        assert (await holder.say("still here")).status is Status.OK
        assert [r.outcome for r in await rig.pass_time(2_000)] == ["requeued"]

    async def test_a_clock_that_was_set_back_holds_nothing_up(self, rig: Rig) -> None:
        """A lease that is due in an hour because a clock was corrected, or a replica took over, is due as before."""
        holder = await rig.running(lease_ms=LEASE_MS, limits=TWO)
        await rig.pass_time(5_000)
        await rig.leap(-3_600_000)
        assert await rig.reap() == []
        assert await rig.pass_time(4_000) == []
        assert (await holder.say("still here")).status is Status.OK
        assert [r.outcome for r in await rig.pass_time(2_000)] == ["requeued"]

    async def test_a_neighbours_fault_is_no_attempt(self, rig: Rig) -> None:
        """One run blocks its worker and ends with it; those beside it have as many attempts left as before."""
        guilty = await rig.running("s1", limits=TWO)
        beside = await rig.running("s2", limits=replace(CALM, attempts_max=1))
        done = {each.key: each for each in await rig.store.bury("w", guilty.key)}
        assert done[beside.key].outcome == "requeued"
        assert await rig.ended(guilty.key) == (State.FAILED, Reason.AGENT_ERROR)
        again = await rig.begin(beside.key)
        assert again.claim.attempt == 1
        assert (await again.finish()).status is Status.OK

    async def test_deadlines_and_queue_timeouts_did_not_pass_either(self, rig: Rig) -> None:
        """[READ] a suspended laptop must not wake up to a queue full of failed runs."""
        short = replace(CALM, deadline_ms=20_000, queue_timeout_ms=10_000)
        running = await rig.running("s1", limits=short)
        queued = await rig.create("s2", limits=short)
        await rig.pass_time(2_000)
        await rig.leap(3_600_000)
        assert await rig.reap() == []
        assert await rig.pass_time(6_500) == []
        assert [r.key for r in await rig.pass_time(3_000)] == [queued]
        assert await rig.state(running.key) is State.RUNNING
        await rig.pass_time(15_000)
        assert await rig.ended(running.key) == (State.FAILED, Reason.DEADLINE)

    async def test_regular_reaping_lets_time_pass(self, rig: Rig) -> None:
        """The rule above must not keep a dead worker's run alive in a deployment that lives."""
        await rig.running(lease_ms=LEASE_MS, limits=TWO)
        elapsed = 0
        while not await rig.pass_time(1_000):
            elapsed += 1_000
            assert elapsed <= LEASE_MS + 1_000
        assert elapsed >= LEASE_MS - 1_000

    async def test_next_due_tells_when_to_reap(self, rig: Rig) -> None:
        """A reaper that sleeps until then misses nothing, and does not spin."""
        assert await rig.store.next_due_ms() is None
        await rig.create(limits=replace(CALM, queue_timeout_ms=30_000, deadline_ms=50_000))
        due = await rig.store.next_due_ms()
        assert due is not None
        assert 29_000 < due <= 30_000
        holder = (await rig.claim(lease_ms=LEASE_MS))[0]
        due = await rig.store.next_due_ms()
        assert due is not None
        assert LEASE_MS - 1_000 < due <= LEASE_MS
        await rig.store.disown()
        assert await rig.store.next_due_ms() == 0
        await rig.reap()
        holder = (await rig.claim())[0]
        await holder.start()
        await holder.finish()
        assert await rig.store.next_due_ms() is None

    async def test_two_reapers_end_each_run_once(self, rig: Rig, harness: StoreHarness) -> None:
        """Every process reaps: the step is conditional, so that nobody's work is done twice."""
        other = rig.at(await harness.another())
        keys = [(await rig.running(f"s{n}")).key for n in range(40)]
        behind = [await rig.create(f"s{n}") for n in range(40)]
        await rig.store.disown()
        batches = await asyncio.gather(*(r.reap() for r in (rig, other) for _ in range(3)))
        done = [r.key for batch in batches for r in batch]
        assert sorted(done) == sorted(keys)
        for key in keys:
            assert (await rig.types(key)).count("run.failed") == 1
        assert sorted(await other.drive()) == sorted(behind)

    async def test_a_reaper_racing_a_finish_leaves_one_end(self, rig: Rig, harness: StoreHarness) -> None:
        """The worker was slow, not dead: either its end counts or the reaper's, never both."""
        other = rig.at(await harness.another())
        for n in range(10):
            holder = await rig.running(f"s{n}")
            await rig.store.disown()
            finished, reaped = await asyncio.gather(holder.finish(), other.reap())
            assert (finished.status, len(reaped)) in {(Status.OK, 0), (Status.FENCED, 1)}
            assert (await rig.log(holder.key))[-1]["type"] in {
                EventType.RUN_COMPLETED,
                EventType.RUN_FAILED,
            }
