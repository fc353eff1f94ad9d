"""Timing: deadlines and queue timeouts, when they run and when they stand still."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.testing.build import CALM, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import GRACE_MS, LEASE_MS, Rig

DEADLINE = (State.FAILED, Reason.DEADLINE)
QUEUE_TIMEOUT = (State.FAILED, Reason.QUEUE_TIMEOUT)
SLACK_MS = 1_500
S20 = replace(CALM, deadline_ms=20_000)
WAIT10 = replace(CALM, queue_timeout_ms=10_000)


class Timing(StoreCase):
    """reap: deadlines, queue timeouts, session waits, approval deadlines."""

    async def test_a_running_run_ends_at_its_deadline(self, rig: Rig) -> None:
        """P1: no later than deadline + grace + 1.5 s, even if its worker renews for ever."""
        holder = await rig.running(limits=S20)
        await holder.append(text(0, "so far"))
        await rig.pass_time(18_000)
        assert await rig.state(holder.key) is State.RUNNING
        await rig.pass_time(2_000 + GRACE_MS + SLACK_MS)
        assert await rig.ended(holder.key) == DEADLINE
        last = (await rig.log(holder.key))[-1]
        assert (last["reason"], last["partial"]) == ("deadline", "so far")
        assert last["receipt"]["by"] == "reaper"

    async def test_a_flagged_run_at_its_deadline_is_cancelled(self, rig: Rig) -> None:
        """[MC] the stop came first; the end says so."""
        holder = await rig.running(limits=S20)
        await rig.pass_time(19_000)
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        await rig.pass_time(1_000 + GRACE_MS + SLACK_MS)
        assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)

    async def test_the_deadline_does_not_run_behind_another_run(self, rig: Rig) -> None:
        """It runs from first ready: a prompt behind a long answer gets its own full time."""
        first = await rig.running()
        behind = await rig.create(limits=S20)
        await rig.pass_time(60_000)
        await first.finish()
        holder = await rig.begin(behind)
        assert 19_000 < holder.claim.deadline_left_ms <= 20_000
        await rig.pass_time(18_000)
        assert (await holder.finish()).status == "ok"

    async def test_the_deadline_is_not_renewed_by_a_requeue(self, rig: Rig) -> None:
        """It is the client's bound: attempts share it."""
        key = await rig.create(limits=replace(S20, attempts_max=10))
        for _ in range(4):
            await rig.begin(key, lease_ms=LEASE_MS)
            await rig.pass_time(4_500)
            await rig.store.disown()
            await rig.reap()
        holder = await rig.begin(key)
        assert 1_000 <= holder.claim.deadline_left_ms <= 3_000
        await rig.pass_time(2_000 + GRACE_MS + SLACK_MS)
        assert await rig.ended(key) == DEADLINE

    async def test_the_deadline_stands_still_while_waiting(self, rig: Rig) -> None:
        """A human's hour does not count as the agent's."""
        holder = await rig.running(limits=S20)
        await rig.pass_time(5_000)
        await holder.park()
        await rig.pass_time(60_000)
        await rig.store.resume(holder.key, [])
        holder = await rig.begin(holder.key)
        assert 14_000 <= holder.claim.deadline_left_ms <= 15_500
        await rig.pass_time(13_000)
        assert await rig.state(holder.key) is State.RUNNING
        await rig.pass_time(2_000 + GRACE_MS + SLACK_MS)
        assert await rig.ended(holder.key) == DEADLINE

    async def test_an_approval_has_its_own_deadline(self, rig: Rig) -> None:
        """A request that nobody answers ends, and its session goes on."""
        holder = await rig.running()
        behind = await rig.create()
        await holder.park(approval_ms=10_000)
        assert await rig.pass_time(9_000) == []
        (done,) = await rig.pass_time(2_000)
        assert (done.key, done.outcome) == (holder.key, "failed")
        assert await rig.ended(holder.key) == DEADLINE
        await rig.begin(behind)

    async def test_a_run_that_nobody_claims_times_out_in_the_queue(self, rig: Rig) -> None:
        """No worker: the client is told within queue_timeout instead of waiting for the deadline."""
        key = await rig.create(limits=WAIT10)
        assert await rig.pass_time(9_000) == []
        (done,) = await rig.pass_time(2_000)
        assert (done.key, done.outcome, done.reason) == (key, "failed", Reason.QUEUE_TIMEOUT)
        assert await rig.ended(key) == QUEUE_TIMEOUT
        last = (await rig.log(key))[-1]
        assert (last["type"], last["reason"]) == ("run.failed", "queue_timeout")
        assert last["error"]["remedy"]
        assert await rig.claim() == []
        assert await rig.store.active("local", "s") is None

    async def test_the_queue_timeout_does_not_run_behind_another_run(self, rig: Rig) -> None:
        """Behind another run nobody could claim it; at the head it has its full time."""
        first = await rig.running()
        behind = await rig.create(limits=WAIT10)
        assert await rig.pass_time(60_000) == []
        await first.finish()
        assert await rig.pass_time(9_000) == []
        await rig.begin(behind)

    async def test_the_queue_timeout_runs_anew_after_a_requeue(self, rig: Rig) -> None:
        """A run that was given back after a while has not waited in the queue for that while."""
        limits = replace(WAIT10, attempts_max=3)
        holder = await rig.running(limits=limits)
        await rig.pass_time(15_000)
        await holder.release()
        assert await rig.pass_time(9_000) == []
        await rig.begin(holder.key)
        await rig.pass_time(15_000)
        await rig.store.disown()
        assert [r.outcome for r in await rig.reap()] == ["requeued"]
        assert await rig.pass_time(9_000) == []
        assert [r.reason for r in await rig.pass_time(2_000)] == [Reason.QUEUE_TIMEOUT]

    async def test_a_claimed_run_is_not_timed_out_of_the_queue(self, rig: Rig) -> None:
        """It left the queue in time."""
        key = await rig.create(limits=WAIT10)
        await rig.pass_time(8_000)
        await rig.begin(key)
        assert await rig.pass_time(20_000) == []

    async def test_a_run_behind_another_waits_for_session_wait(self, rig: Rig) -> None:
        """The bound behind another run; the one before it is not touched."""
        first = await rig.running()
        behind = await rig.create(limits=replace(CALM, session_wait_ms=15_000))
        last = await rig.create()
        assert await rig.pass_time(14_000) == []
        (done,) = await rig.pass_time(2_000)
        assert (done.key, done.outcome) == (behind, "failed")
        assert await rig.ended(behind) == QUEUE_TIMEOUT
        assert (await rig.record(last)).position == 1
        await first.finish()
        assert await rig.drive() == [last]

    async def test_the_record_says_what_is_due_next(self, rig: Rig) -> None:
        """`inspect` answers: when will this end by itself?"""
        limits = replace(CALM, deadline_ms=60_000, queue_timeout_ms=10_000)
        key = await rig.create(limits=limits)
        assert 9_000 < await _due(rig, key) <= 10_000
        await rig.pass_time(5_000)
        assert 4_000 < await _due(rig, key) <= 5_000
        holder = await rig.begin(key)
        assert 54_000 < await _due(rig, key) <= 55_000
        await holder.park(approval_ms=20_000)
        assert 19_000 < await _due(rig, key) <= 20_000


async def _due(rig: Rig, key: RunKey) -> int:
    due = (await rig.record(key)).due_in_ms
    assert due is not None
    return due
