"""Superseding: a new prompt takes the session, and what it takes the place of ends."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import new_run
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import Rig

SUPERSEDED = (State.CANCELLED, Reason.SUPERSEDED)


class Superseding(StoreCase):
    """create with policy supersede."""

    async def test_a_running_run_is_flagged_and_its_successor_waits_for_its_end(self, rig: Rig) -> None:
        """Order is strict: the old run's terminal event is in the log before the new one starts."""
        old = await rig.running()
        new = new_run(policy=Policy.SUPERSEDE)
        created = await rig.store.create(new)
        assert created.status is Status.OK
        assert created.superseded == []  # what ended in this step; the flagged one is still to be ended
        record = await rig.record(old.key)
        assert (record.state, record.stopping) == (State.RUNNING, Reason.SUPERSEDED)
        assert await rig.claim() == []
        assert (await old.finish(State.CANCELLED, Reason.SUPERSEDED)).status is Status.OK
        assert await rig.ended(old.key) == SUPERSEDED
        await rig.begin(new.key)

    async def test_a_superseded_run_cannot_complete_any_more(self, rig: Rig) -> None:
        """[MC] finish answers STOP once the flag is set: the state is not decided by a race."""
        old = await rig.running()
        await rig.create(policy=Policy.SUPERSEDE)
        assert (await old.finish(State.COMPLETED)).status is Status.STOP
        assert (await old.finish(State.FAILED)).status is Status.STOP
        assert (await old.finish(State.CANCELLED, Reason.SUPERSEDED)).status is Status.OK

    async def test_a_run_that_nobody_claimed_ends_at_once(self, rig: Rig) -> None:
        """Nobody else could end it; its successor is at the head in the same step."""
        old = await rig.create()
        new = new_run(policy=Policy.SUPERSEDE)
        created = await rig.store.create(new)
        assert created.superseded == [old.run]
        assert await rig.ended(old) == SUPERSEDED
        assert (await rig.record(new.key)).position == 0
        await rig.begin(new.key)

    async def test_a_parked_run_ends_at_once_and_its_successor_starts(self, rig: Rig) -> None:
        """[MC] nobody holds a parked run: flagged only, its successor would wait for ever."""
        old = await rig.running()
        await old.park()
        new = await rig.create(policy=Policy.SUPERSEDE)
        assert await rig.ended(old.key) == SUPERSEDED
        assert (await rig.types(old.key))[-1] == "run.cancelled"
        await rig.begin(new)

    async def test_all_queued_runs_end_in_the_same_step(self, rig: Rig) -> None:
        """[MC] otherwise the new run waits behind an enqueued one for up to that one's deadline."""
        active = await rig.running()
        queued = [await rig.create() for _ in range(3)]
        new = new_run(policy=Policy.SUPERSEDE)
        created = await rig.store.create(new)
        assert sorted(created.superseded) == sorted(k.run for k in queued)
        assert [await rig.ended(k) for k in queued] == [SUPERSEDED] * 3
        assert created.record is not None
        assert created.record.position == 1
        await active.finish(State.CANCELLED, Reason.SUPERSEDED)
        assert await rig.drive() == [new.key]

    async def test_inputs_of_superseded_runs_stay_in_the_history(self, rig: Rig) -> None:
        """[READ] what the user wrote is never deleted, whether or not a model saw it."""
        active = await rig.running(text="first")
        await rig.create(text="second")
        await rig.create(text="third")
        await rig.create(text="last", policy=Policy.SUPERSEDE)
        await active.finish(State.CANCELLED, Reason.SUPERSEDED)
        await rig.drive()
        history = await rig.store.history("local", "s")
        said = [m.text for entry in history for m in entry.messages if m.role == "user"]
        assert sorted(said) == ["first", "last", "second", "third"]
        assert said[-1] == "last"

    async def test_only_the_last_of_many_superseding_prompts_runs(self, rig: Rig) -> None:
        """Five rapid prompts: the first is stopped, three never run, the fifth is answered."""
        first = await rig.running()
        keys = [await rig.create(policy=Policy.SUPERSEDE) for _ in range(4)]
        assert [await rig.state(k) for k in keys] == [State.CANCELLED] * 3 + [State.QUEUED]
        assert (await rig.record(first.key)).stopping is Reason.SUPERSEDED
        await first.finish(State.CANCELLED, Reason.SUPERSEDED)
        assert await rig.drive() == [keys[-1]]

    async def test_superseding_keeps_the_first_stop_reason(self, rig: Rig) -> None:
        """A user who pressed Stop is told that the run was stopped."""
        old = await rig.running()
        await rig.store.request_stop(old.key, Reason.STOPPED, "user")
        await rig.create(policy=Policy.SUPERSEDE)
        assert (await rig.record(old.key)).stopping is Reason.STOPPED

    async def test_repeating_a_superseding_create_stops_nothing_more(self, rig: Rig) -> None:
        """The repeat of a lost reply must not end what came after the first call."""
        old = await rig.create()
        new = new_run(policy=Policy.SUPERSEDE)
        await rig.store.create(new)
        later = await rig.create()
        assert (await rig.store.create(new)).status is Status.EXISTS
        assert await rig.state(old) is State.CANCELLED
        assert await rig.drive() == [new.key, later]

    async def test_other_sessions_are_not_touched(self, rig: Rig) -> None:
        """A prompt in one conversation says nothing about another."""
        other = await rig.running("other")
        await rig.create("s", policy=Policy.SUPERSEDE)
        await rig.create("s", policy=Policy.SUPERSEDE)
        assert (await rig.record(other.key)).stopping is None
        assert (await other.finish()).status is Status.OK

    async def test_the_superseded_event_says_why(self, rig: Rig) -> None:
        """A reader of the old run learns that a newer prompt took its place."""
        old = await rig.create()
        await rig.create(policy=Policy.SUPERSEDE)
        last = (await rig.log(old))[-1]
        assert (last["type"], last["reason"]) == ("run.cancelled", "superseded")
        assert {"by", "partial", "usage", "receipt"} <= last.keys()
