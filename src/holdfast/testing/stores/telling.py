"""Who tells of an end that no worker wrote: exactly one, and before whoever follows in the session begins."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import pytest

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Claim, Ended, Limits
from holdfast.testing.build import CALM, HOUR_MS
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import GRACE_MS, LEASE_MS, Rig

CUT_OFF_MS = GRACE_MS + 1


def said(ends: list[Ended]) -> list[tuple[str, State, Reason, str, bool]]:
    """What the log lines of these ends say."""
    return [(e.key.run, e.state, e.reason, e.by, e.cut_off) for e in ends]


class Telling(StoreCase):
    """Claim.before, Stopped.ends, Reaped.ends."""

    async def _claim(self, rig: Rig, key: RunKey) -> Claim:
        (claim,) = await rig.store.claim("w", 10, LEASE_MS)
        assert claim.key == key
        return claim

    async def test_the_end_of_a_superseded_run_is_handed_to_its_successor(self, rig: Rig) -> None:
        """Who ended it may be frozen; the successor's worker tells before it begins."""
        old = await rig.running()
        new = await rig.create(policy=Policy.SUPERSEDE)
        (reaped,) = await rig.pass_time(CUT_OFF_MS)
        assert (reaped.key, reaped.ends) == (old.key, [])
        claim = await self._claim(rig, new)
        assert said(claim.before) == [(old.key.run, State.CANCELLED, Reason.SUPERSEDED, new.run, True)]
        (end,) = claim.before
        record = await rig.record(old.key)
        assert (end.session, end.created_at, end.ended_at) == ("s", record.created_at, record.ended_at)

    async def test_an_end_is_handed_out_once(self, rig: Rig) -> None:
        """A line that is written twice is one too many."""
        old = await rig.running()
        new = await rig.create(policy=Policy.SUPERSEDE)
        await rig.pass_time(CUT_OFF_MS)
        claim = await self._claim(rig, new)
        await rig.store.release(new, claim.fence)
        assert (await self._claim(rig, new)).before == []
        assert await rig.reap() == []
        assert (await rig.record(old.key)).state is State.CANCELLED

    async def test_queued_runs_that_a_prompt_supersedes_are_told_by_its_claim(self, rig: Rig) -> None:
        """They never ran, so nothing was cut off; the one that was active is told by its own worker."""
        holder = await rig.running()
        behind = await rig.create()
        new = await rig.create(policy=Policy.SUPERSEDE)
        await holder.finish(State.CANCELLED, Reason.SUPERSEDED)
        claim = await self._claim(rig, new)
        assert said(claim.before) == [(behind.run, State.CANCELLED, Reason.SUPERSEDED, new.run, False)]

    async def test_a_chain_of_superseded_prompts_is_told_in_order(self, rig: Rig) -> None:
        """None of them began; the last one's claim has all."""
        keys = [await rig.create(policy=Policy.SUPERSEDE) for _ in range(4)]
        claim = await self._claim(rig, keys[-1])
        assert [(e.key, e.by) for e in claim.before] == [(keys[n], keys[n + 1].run) for n in range(3)]

    async def test_a_stop_without_a_successor_is_told_by_who_asked(self, rig: Rig) -> None:
        """Nobody else will."""
        key = await rig.create()
        answer = await rig.store.request_stop(key, Reason.STOPPED, "user")
        assert said(answer.ends) == [(key.run, State.CANCELLED, Reason.STOPPED, "user", False)]
        assert (await rig.store.request_stop(key, Reason.STOPPED, "user")).ends == []

    async def test_a_stop_behind_a_running_run_is_told_at_once(self, rig: Rig) -> None:
        """No run begins because of it."""
        await rig.running()
        behind = await rig.create()
        answer = await rig.store.request_stop(behind, Reason.STOPPED, "user")
        assert said(answer.ends) == [(behind.run, State.CANCELLED, Reason.STOPPED, "user", False)]

    async def test_a_stop_with_a_successor_is_told_by_that(self, rig: Rig) -> None:
        """The queued run at the head ends, the next is promoted in the same step."""
        head, follower = await rig.create(), await rig.create()
        assert (await rig.store.request_stop(head, Reason.STOPPED, "user")).ends == []
        claim = await self._claim(rig, follower)
        assert said(claim.before) == [(head.run, State.CANCELLED, Reason.STOPPED, "user", False)]

    async def test_what_a_successor_could_not_tell_is_told_with_its_own_end(self, rig: Rig) -> None:
        """It was stopped in the queue before anybody claimed it."""
        head, follower = await rig.create(), await rig.create()
        await rig.store.request_stop(head, Reason.STOPPED, "a")
        answer = await rig.store.request_stop(follower, Reason.STOPPED, "b")
        assert [(e.key, e.by) for e in answer.ends] == [(head, "a"), (follower, "b")]

    async def test_a_queue_timeout_is_told_by_reap(self, rig: Rig) -> None:
        """No worker ever knew the run."""
        limits = Limits(queue_timeout_ms=2_000, session_wait_ms=HOUR_MS, deadline_ms=HOUR_MS)
        key = await rig.create(limits=limits)
        (reaped,) = await rig.pass_time(2_500)
        assert said(reaped.ends) == [(key.run, State.FAILED, Reason.QUEUE_TIMEOUT, "", False)]

    async def test_a_flagged_run_that_is_released_is_told_by_its_worker(self, rig: Rig) -> None:
        """It left by itself: nothing was cut off."""
        holder = await rig.running()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        answer = await rig.store.release(holder.key, holder.fence)
        assert said(answer.ends) == [(holder.key.run, State.CANCELLED, Reason.STOPPED, "user", False)]

    async def test_what_the_dead_held_is_told_by_who_buries_them(self, rig: Rig) -> None:
        """A run without another attempt; nothing follows in its session."""
        holder = await rig.running(limits=CALM)
        (reaped,) = await rig.store.bury("w")
        assert said(reaped.ends) == [(holder.key.run, State.FAILED, Reason.WORKER_LOST, "", True)]

    @pytest.mark.parametrize("active", ["queued", "waiting"])
    async def test_runs_of_a_forgotten_session_are_told_by_reap(self, rig: Rig, active: str) -> None:
        """The step that forgets answers with a word only."""
        if active == "queued":
            key = await rig.create()
        else:
            holder = await rig.running()
            await holder.park()
            key = holder.key
        await rig.store.delete_session("local", "s", "user")
        assert [said(r.ends) for r in await rig.reap()] == [[(key.run, State.CANCELLED, Reason.STOPPED, "user", False)]]
        assert await rig.reap() == []
