"""Parking and giving back: runs that nobody works on, and that are not lost."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import LEASE_MS, Rig

YES = [{"call": "c1", "approve": True}]


class Parking(StoreCase):
    """park, resume, release, edit_input."""

    async def test_a_parked_run_waits_and_holds_no_worker(self, rig: Rig) -> None:
        """Approval may take a day; no lease runs meanwhile."""
        holder = await rig.running(lease_ms=LEASE_MS)
        answer = await holder.park()
        assert (answer.status, answer.head) == (Status.OK, holder.head)
        record = await rig.record(holder.key)
        assert (record.state, record.lease_left_ms) == (State.WAITING, None)
        assert (await rig.types(holder.key))[-1] == "run.waiting"
        assert await rig.pass_time(3 * LEASE_MS) == []
        (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert renewal.lost

    async def test_repeating_a_park_answers_dup(self, rig: Rig) -> None:
        """A worker whose reply was lost must not take its run for stolen."""
        holder = await rig.running()
        await holder.park()
        assert (await holder.repeat()).status is Status.DUP
        assert await rig.state(holder.key) is State.WAITING

    async def test_resume_hands_the_decisions_to_the_next_claim(self, rig: Rig) -> None:
        """run.resumed is in the log, the checkpoint of the park and the decisions are in the claim."""
        first = await rig.running()
        await first.park(b"where I was")
        answer = await rig.store.resume(first.key, YES)
        assert (answer.status, answer.head) == (Status.OK, first.head + 1)
        last = (await rig.log(first.key))[-1]
        assert (last["type"], last["decisions"]) == ("run.resumed", YES)
        second = await rig.take(first.key)
        assert second.fence.epoch > first.fence.epoch
        assert (second.claim.checkpoint, second.claim.checkpoint_seq) == (b"where I was", first.head)
        assert (second.claim.decisions, second.claim.base) == (YES, first.head + 1)
        assert (await second.finish()).status is Status.OK

    async def test_some_decisions_are_kept_and_the_run_waits_on(self, rig: Rig) -> None:
        """Whoever decides about the rest finds them in the log, whatever has died meanwhile."""
        holder = await rig.running()
        await holder.park()
        fields = {"decisions": YES, "open": ["c2"], "asked": holder.head}
        answer = await rig.store.decide(holder.key, fields, holder.head)
        assert (answer.status, answer.head) == (Status.OK, holder.head + 1)
        last = (await rig.log(holder.key))[-1]
        assert (last["type"], last["decisions"], last["open"]) == ("run.decided", YES, ["c2"])
        record = await rig.record(holder.key)
        assert (record.state, record.seq) == (State.WAITING, answer.head)
        assert (await rig.store.resume(holder.key, YES, answer.head)).status is Status.OK
        assert (await rig.take(holder.key)).claim.decisions == YES

    async def test_a_decision_counts_only_behind_what_it_has_read(self, rig: Rig) -> None:
        """Of two who decide at once one would overwrite what the other was told is kept."""
        holder = await rig.running()
        await holder.park()
        fields = {"decisions": YES, "open": ["c2"], "asked": holder.head}
        first, second = await asyncio.gather(*(rig.store.decide(holder.key, fields, holder.head) for _ in range(2)))
        assert {first.status, second.status} == {Status.OK, Status.GAP}
        assert (await rig.store.resume(holder.key, YES, holder.head)).status is Status.GAP
        assert await rig.state(holder.key) is State.WAITING
        await rig.store.request_stop(holder.key, Reason.STOPPED, "test")
        head = (await rig.record(holder.key)).seq
        assert (await rig.store.decide(holder.key, fields, head)).status is not Status.OK
        assert (await rig.store.decide(RunKey("local", "r_none"), fields, 1)).status is Status.UNKNOWN
        assert (await rig.types(holder.key)).count("run.decided") == 1

    async def test_waiting_for_approval_is_no_attempt(self, rig: Rig) -> None:
        """An agent without checkpoints has one attempt; asking a human must not use it up."""
        holder = await rig.running(limits=replace(CALM, attempts_max=1))
        for _ in range(3):
            await holder.park()
            await rig.store.resume(holder.key, YES)
            assert await rig.reap() == []
            holder = await rig.begin(holder.key)
        assert (await holder.finish()).status is Status.OK

    async def test_attempts_are_left_after_waiting(self, rig: Rig) -> None:
        """Only a lost worker uses up an attempt: a run that asked twice still survives its first loss."""
        holder = await rig.running(limits=replace(CALM, attempts_max=2))
        for _ in range(2):
            await holder.park()
            await rig.store.resume(holder.key, YES)
            holder = await rig.begin(holder.key)
        for expected in ("requeued", "failed"):
            await rig.store.disown()
            assert [r.outcome for r in await rig.reap()] == [expected]
            if expected == "requeued":
                await rig.begin(holder.key)

    async def test_a_decision_is_taken_once(self, rig: Rig) -> None:
        """Two clients decide at once: the run goes on once."""
        holder = await rig.running()
        await holder.park()
        answers = await asyncio.gather(*(rig.store.resume(holder.key, YES) for _ in range(5)))
        assert [a.status for a in answers].count(Status.OK) == 1
        assert (await rig.types(holder.key)).count("run.resumed") == 1
        await rig.begin(holder.key)
        late = await rig.store.resume(holder.key, YES)
        assert late.status is not Status.OK
        assert await rig.claim() == []

    async def test_resume_says_when_there_is_nothing_to_resume(self, rig: Rig) -> None:
        """A late decision is told so, whatever became of the run."""
        holder = await rig.running()
        assert (await rig.store.resume(holder.key, YES)).status is not Status.OK
        await holder.finish()
        assert (await rig.store.resume(holder.key, YES)).status is Status.ENDED
        nobody = RunKey("local", "r_none")
        assert (await rig.store.resume(nobody, YES)).status is Status.UNKNOWN
        assert "run.resumed" not in await rig.types(holder.key)

    async def test_park_refuses_a_run_that_was_told_to_stop(self, rig: Rig) -> None:
        """[MC] a parked run with the flag set would wait for a decision that no longer matters."""
        holder = await rig.running()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert (await holder.park()).status is Status.STOP
        assert await rig.state(holder.key) is State.RUNNING
        assert (await holder.finish(State.CANCELLED)).status is Status.OK

    async def test_resume_refuses_a_run_that_was_told_to_stop(self, rig: Rig) -> None:
        """[MC] the stop ended the waiting run in its own step; a decision cannot bring it back."""
        holder = await rig.running()
        await holder.park()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert (await rig.store.resume(holder.key, YES)).status in {Status.ENDED, Status.STOP}
        assert await rig.claim() == []
        assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)

    async def test_a_stop_racing_a_decision_ends_the_run(self, rig: Rig) -> None:
        """[MC] whichever comes first, the run is cancelled and its session free."""
        for n in range(10):
            holder = await rig.running(f"s{n}")
            await holder.park()
            await asyncio.gather(
                rig.store.resume(holder.key, YES),
                rig.store.request_stop(holder.key, Reason.STOPPED, "user"),
            )
            assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)
            assert await rig.store.active("local", f"s{n}") is None

    async def test_a_released_run_is_the_next_of_its_tenant(self, rig: Rig) -> None:
        """A drain must not send runs back to the end of the queue."""
        first = await rig.running("s1")
        other = await rig.create("s2")
        assert (await first.release()).status is Status.OK
        assert await rig.state(first.key) is State.QUEUED
        again = await rig.begin(first.key)
        assert again.fence.epoch > first.fence.epoch
        await rig.begin(other)

    async def test_a_released_run_goes_before_older_ones_that_became_ready_since(self, rig: Rig) -> None:
        """It was being worked on: prompts that are older but were behind others have not been."""
        first = await rig.running("s1")
        older = await rig.create("s1")
        holder = await rig.running("s2")
        await first.finish()
        await holder.release()
        await rig.begin(holder.key)
        await rig.begin(older)

    async def test_a_release_is_no_attempt(self, rig: Rig) -> None:
        """A requeue for a neighbour's fault, or a drain, does not count."""
        holder = await rig.running(limits=replace(CALM, attempts_max=1))
        for _ in range(3):
            await holder.release()
            assert await rig.reap() == []
            holder = await rig.begin(holder.key)
        assert (await holder.finish()).status is Status.OK

    async def test_a_released_run_keeps_its_session(self, rig: Rig) -> None:
        """It is the head of its session as before; nothing overtakes it there."""
        holder = await rig.running()
        behind = await rig.create()
        await holder.release()
        assert (await rig.record(holder.key)).position == 0
        assert (await rig.record(behind)).position == 1
        assert await rig.drive() == [holder.key, behind]

    async def test_releasing_a_flagged_run_ends_it(self, rig: Rig) -> None:
        """[MC] a release blind to the flag would start stopped work again."""
        holder = await rig.running()
        behind = await rig.create()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert (await holder.release()).status is Status.OK
        assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)
        assert (await rig.types(holder.key))[-1] == "run.cancelled"
        assert await rig.drive() == [behind]

    async def test_an_input_can_be_edited_while_it_waits(self, rig: Rig) -> None:
        """A typing mistake seen in the queue; worker and history get the new text only."""
        await rig.running()
        waiting = await rig.create(text="helo")
        assert await rig.store.edit_input(waiting, "hello") is Status.OK
        assert (await rig.record(waiting)).spec.input == "hello"
        await rig.store.request_stop(waiting, Reason.STOPPED, "user")
        (entry,) = await rig.store.history("local", "s")
        assert [m.text for m in entry.messages if m.role == "user"] == ["hello"]

    async def test_an_edited_input_is_what_runs(self, rig: Rig) -> None:
        """The claim carries the edit, and so does the history that is derived from the log."""
        key = await rig.create(text="helo")
        await rig.store.edit_input(key, "hello")
        holder = await rig.begin(key)
        assert holder.claim.spec.input == "hello"
        await holder.finish()
        (entry,) = await rig.store.history("local", "s")
        assert [m.text for m in entry.messages if m.role == "user"] == ["hello"]

    async def test_an_input_that_was_begun_cannot_be_edited(self, rig: Rig) -> None:
        """A model may have seen it: running, given back, waiting or over, the text stands."""
        holder = await rig.running()
        assert await rig.store.edit_input(holder.key, "x") is Status.ENDED
        await holder.release()
        assert await rig.store.edit_input(holder.key, "x") is Status.ENDED
        holder = await rig.begin(holder.key)
        await holder.park()
        assert await rig.store.edit_input(holder.key, "x") is Status.ENDED
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert await rig.store.edit_input(holder.key, "x") is Status.ENDED
        assert await rig.store.edit_input(RunKey("local", "r_none"), "x") is Status.UNKNOWN
        assert (await rig.record(holder.key)).spec.input == "hello"
