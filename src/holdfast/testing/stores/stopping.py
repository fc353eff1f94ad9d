"""Stopping: a durable flag that ends a run wherever it is, and never ends the wrong one."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import pytest
from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM, HOUR_MS, text, tool_called, tool_finished
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import GRACE_MS, LEASE_MS, Rig

STOPPED = (State.CANCELLED, Reason.STOPPED)


class Stopping(StoreCase):
    """request_stop at every position, and who sees the flag."""

    async def test_a_queued_run_ends_in_the_step_that_asks(self, rig: Rig) -> None:
        """No worker will ever look at it."""
        key = await rig.create()
        answer = await rig.store.request_stop(key, Reason.STOPPED, "user")
        assert answer.status is Status.OK
        assert answer.record is not None
        assert (answer.record.state, answer.record.reason) == STOPPED
        last = (await rig.log(key))[-1]
        assert (last["type"], last["reason"], last["by"]) == ("run.cancelled", "stopped", "user")
        assert {"partial", "usage", "receipt"} <= last.keys()
        assert await rig.claim() == []
        assert await rig.store.active("local", "s") is None

    async def test_a_running_run_is_flagged(self, rig: Rig) -> None:
        """Its worker ends it, with a receipt that only the worker can write."""
        holder = await rig.running()
        answer = await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert answer.status is Status.OK
        assert answer.record is not None
        assert (answer.record.state, answer.record.stopping) == (State.RUNNING, Reason.STOPPED)
        assert (await holder.say("last words")).status is Status.OK
        assert (await holder.finish(State.CANCELLED, Reason.STOPPED)).status is Status.OK

    async def test_a_claimed_run_that_has_not_begun_is_flagged(self, rig: Rig) -> None:
        """The claim's reply may still be on its way: the renewal tells its worker."""
        holder = await rig.take(await rig.create())
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert (renewal.lost, renewal.stop) == (False, Reason.STOPPED)

    async def test_a_waiting_run_ends_in_the_step_that_asks(self, rig: Rig) -> None:
        """[MC] nobody holds it, so nobody else would end it; its session goes on."""
        holder = await rig.running()
        behind = await rig.create()
        await holder.park()
        answer = await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert answer.status is Status.OK
        assert await rig.ended(holder.key) == STOPPED
        assert (await rig.types(holder.key))[-1] == "run.cancelled"
        await rig.begin(behind)

    @pytest.mark.parametrize("position", range(5))
    async def test_a_stop_at_any_position_ends_that_run_only(self, rig: Rig, position: int) -> None:
        """The others of the session are answered, in order."""
        keys = [await rig.create() for _ in range(5)]
        await rig.store.request_stop(keys[position], Reason.STOPPED, "user")
        assert await rig.ended(keys[position]) == STOPPED
        rest = [k for k in keys if k != keys[position]]
        assert [(await rig.record(k)).position for k in rest] == [0, 1, 2, 3]
        assert await rig.drive() == rest

    @pytest.mark.parametrize("position", [1, 2, 3])
    async def test_stopping_a_run_behind_a_running_one_leaves_the_session_alive(self, rig: Rig, position: int) -> None:
        """[MC] create A, create B (enqueue), stop B, A finishes: the slot must not go to the terminal B."""
        active = await rig.running()
        behind = [await rig.create() for _ in range(3)]
        await rig.store.request_stop(behind[position - 1], Reason.STOPPED, "user")
        assert (await active.say("x")).status is Status.OK
        await active.finish()
        left = [k for k in behind if k != behind[position - 1]]
        assert await rig.drive() == left
        assert await rig.store.active("local", "s") is None
        await rig.create()
        assert len(await rig.drive()) == 1

    async def test_stopping_everything_behind_leaves_the_session_idle(self, rig: Rig) -> None:
        """[MC] promotion that finds nobody alive frees the slot."""
        active = await rig.running()
        for key in [await rig.create() for _ in range(3)]:
            await rig.store.request_stop(key, Reason.STOPPED, "user")
        await active.finish()
        assert await rig.store.active("local", "s") is None
        key = await rig.create()
        await rig.begin(key)

    async def test_the_first_reason_is_kept(self, rig: Rig) -> None:
        """What ended a run is what asked first; asking again is no error."""
        holder = await rig.running()
        for reason in (Reason.CLIENT_DISCONNECT, Reason.STOPPED, Reason.SHUTDOWN):
            answer = await rig.store.request_stop(holder.key, reason, "x")
            assert answer.status is Status.OK
        assert (await rig.record(holder.key)).stopping is Reason.CLIENT_DISCONNECT
        await rig.store.disown()
        await rig.reap()
        assert await rig.ended(holder.key) == (State.CANCELLED, Reason.CLIENT_DISCONNECT)

    async def test_stopping_an_ended_or_unknown_run_changes_nothing(self, rig: Rig) -> None:
        """Stop is safe to press at any time."""
        holder = await rig.running()
        await holder.finish()
        answer = await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert answer.status is Status.ENDED
        assert answer.record is not None
        assert (answer.record.state, answer.record.stopping) == (State.COMPLETED, None)
        nothing = await rig.store.request_stop(RunKey("local", "r_none"), Reason.STOPPED, "user")
        assert (nothing.status, nothing.record) == (Status.UNKNOWN, None)

    async def test_the_flag_never_expires(self, rig: Rig) -> None:
        """A worker that was frozen for a day still learns that it was told to stop."""
        holder = await rig.running()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        await rig.leap(24 * 3_600_000)
        (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert renewal.lost or renewal.stop is Reason.STOPPED
        assert (await holder.finish(State.COMPLETED)).status in {Status.STOP, Status.FENCED}

    async def test_reap_sees_the_flag(self, rig: Rig) -> None:
        """[MC] stopped work whose worker died is ended, not requeued and started again."""
        holder = await rig.running(limits=replace(CALM, attempts_max=3))
        behind = await rig.create()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        await rig.store.disown()
        (done,) = await rig.reap()
        assert (done.key, done.session, done.outcome) == (holder.key, "s", "cancelled")
        assert done.reason is Reason.STOPPED
        assert await rig.ended(holder.key) == STOPPED
        await rig.begin(behind)

    async def test_a_flagged_claim_that_never_began_is_ended_by_reap(self, rig: Rig) -> None:
        """[MC] a claim without run.started does not count as an attempt, but the stop still holds."""
        holder = await rig.take(await rig.create())
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        await rig.store.disown()
        await rig.reap()
        assert await rig.ended(holder.key) == STOPPED
        assert await rig.claim() == []

    async def test_an_unanswered_stop_is_ended_after_grace(self, rig: Rig) -> None:
        """[READ] the grace timer must not live on the loop that is blocked: reap acts from outside."""
        holder = await rig.running()
        behind = await rig.create()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert await rig.pass_time(GRACE_MS - 500) == []
        (done,) = await rig.pass_time(1_500)
        assert (done.key, done.outcome, done.reason) == (holder.key, "cancelled", Reason.STOPPED)
        receipt = (await rig.record(holder.key)).receipt
        assert receipt is not None
        assert receipt["abandoned"] is True  # nobody has seen it end
        assert (await holder.say("late")).status is Status.FENCED
        await rig.begin(behind)

    async def test_the_reapers_receipt_is_honest(self, rig: Rig) -> None:
        """P2: upstream unknown, unfinished tools abandoned, by reaper; what was shown is the partial."""
        holder = await rig.running()
        await holder.append(
            text(0, "Hello "),
            tool_called("c1"),
            tool_finished("c1", 7),
            tool_called("c2", "slow"),
            text(1, "wor"),
        )
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        await rig.pass_time(GRACE_MS + 1_000)
        last = (await rig.log(holder.key))[-1]
        assert (last["type"], last["reason"], last["by"]) == ("run.cancelled", "stopped", "user")
        assert last["partial"] == "Hello wor"
        receipt = last["receipt"]
        assert (receipt["by"], receipt["upstream_closed_ms"], receipt["abandoned"]) == ("reaper", None, True)
        assert receipt["tools"] == [{"call": "c2", "name": "slow", "ended": "abandoned"}]
        assert GRACE_MS <= receipt["elapsed_ms"] <= GRACE_MS + 1_500
        assert (await rig.record(holder.key)).receipt == receipt

    async def test_a_stop_that_nobody_answers_is_counted_until_it_is(self, rig: Rig) -> None:
        """Whoever watches the store sees a run that should have ended, whatever its worker and the reapers do."""
        holder = await rig.running(lease_ms=HOUR_MS)
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert (await rig.store.health())["overdue"] == 0
        await rig.store.reap(10, HOUR_MS)
        for _ in range(6):  # somebody reaps, else the time would not count
            await rig.leap(2_000)
            await rig.store.reap(10, HOUR_MS)
        assert (await rig.store.health())["overdue"] == 1
        await holder.finish(State.CANCELLED, Reason.STOPPED)
        assert (await rig.store.health())["overdue"] == 0
