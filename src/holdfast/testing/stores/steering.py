"""Steering: an input handed to a run that works, durable until it was read."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio
from collections import Counter

from msgspec.structs import replace

from holdfast.domain.events import EventType
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import RunRecord, Status
from holdfast.testing.build import CALM, Draft, new_run
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import LEASE_MS, Rig


def _steered(*inputs: str) -> list[Draft]:
    return [(EventType.STEERED, {"input": text}) for text in inputs]


async def _steered_runs(rig: Rig, *known: RunKey) -> list[RunRecord]:
    """The runs that the store made itself, out of unread input."""
    return [r for r in await rig.runs() if r.key not in known]


class Steering(StoreCase):
    """create with policy steer, steer, inbox, and what becomes of unread input."""

    async def test_steer_on_an_idle_session_is_enqueue(self, rig: Rig) -> None:
        """There is nobody to hand it to: it is a prompt."""
        key = await rig.create(policy=Policy.STEER)
        assert await rig.drive() == [key]

    async def test_steer_on_a_busy_session_reaches_the_active_run(self, rig: Rig) -> None:
        """The input is in the inbox of the run that works, in order, and makes no run of its own."""
        holder = await rig.running()
        for said in ("one", "two"):
            answer = await rig.store.create(new_run(text=said, policy=Policy.STEER))
            assert answer.status is Status.STEERED
            assert answer.record is not None
            assert answer.record.key == holder.key
        assert [i.input for i in await rig.store.inbox(holder.key)] == ["one", "two"]
        assert len(await rig.runs()) == 1

    async def test_repeating_a_steering_create_steers_once(self, rig: Rig) -> None:
        """A lost reply must not make the user say it twice, with or without an idempotency key."""
        holder = await rig.running()
        plain = new_run(text="one", policy=Policy.STEER)
        keyed = new_run(text="two", policy=Policy.STEER, idempotency_key="k", body_hash="h")
        await rig.store.create(plain)
        await rig.store.create(keyed)
        for again in (plain, replace(keyed, key=new_run().key)):
            answer = await rig.store.create(again)
            assert answer.status in {Status.STEERED, Status.EXISTS}
            assert answer.record is not None
            assert answer.record.key == holder.key
        assert [i.input for i in await rig.store.inbox(holder.key)] == ["one", "two"]

    async def test_a_steering_create_is_repeatable_after_the_run_has_ended(self, rig: Rig) -> None:
        """The key lives as long as the run that it reached: a late repeat must not say it again as a prompt."""
        holder = await rig.running()
        plain = new_run(text="one", policy=Policy.STEER)
        keyed = new_run(text="two", policy=Policy.STEER, idempotency_key="k", body_hash="h")
        for new in (plain, keyed):
            assert (await rig.store.create(new)).status is Status.STEERED
        last = (await rig.store.inbox(holder.key))[-1]
        await holder.append(*_steered("one", "two"), consumed=last.n)
        await holder.finish()
        for again in (plain, replace(keyed, key=new_run().key)):
            answer = await rig.store.create(again)
            assert answer.status in {Status.STEERED, Status.EXISTS}
            assert answer.record is not None
            assert answer.record.key == holder.key
        other = await rig.store.create(replace(keyed, key=new_run().key, body_hash="other"))
        assert other.status is Status.CONFLICT
        assert await _steered_runs(rig, holder.key) == []

    async def test_a_steer_is_repeatable_after_the_run_has_ended(self, rig: Rig) -> None:
        """It was taken: the client whose reply was lost must not be told that it was not."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "one", "k")
        await holder.finish(leave_inbox=True)
        assert await rig.store.steer(holder.key, "one", "k") is Status.OK
        assert await rig.store.steer(holder.key, "two", "k2") is Status.ENDED
        assert len(await _steered_runs(rig, holder.key)) == 1

    async def test_steer_with_one_key_is_heard_once(self, rig: Rig) -> None:
        """The same for a run that is steered by its id."""
        holder = await rig.running()
        for _ in range(3):
            assert await rig.store.steer(holder.key, "one", "k") is Status.OK
        await rig.store.steer(holder.key, "two")
        assert [i.input for i in await rig.store.inbox(holder.key)] == ["one", "two"]

    async def test_a_key_that_was_used_for_another_input_is_a_conflict(self, rig: Rig) -> None:
        """OK would say that the second input was taken, and nobody would ever read it."""
        holder = await rig.running()
        assert await rig.store.steer(holder.key, "one", "k") is Status.OK
        assert await rig.store.steer(holder.key, "two", "k") is Status.CONFLICT
        (item,) = await rig.store.inbox(holder.key)
        await holder.append(*_steered("one"), consumed=item.n)
        assert await rig.store.steer(holder.key, "two", "k") is Status.CONFLICT
        assert await rig.store.steer(holder.key, "one", "k") is Status.OK
        await holder.finish(leave_inbox=True)
        assert await rig.store.steer(holder.key, "two", "k") is Status.CONFLICT
        assert await rig.store.steer(holder.key, "one", "k") is Status.OK

    async def test_steer_says_when_it_comes_too_late(self, rig: Rig) -> None:
        """An input that nobody will read must not be taken."""
        holder = await rig.running()
        await holder.finish()
        assert await rig.store.steer(holder.key, "x") is Status.ENDED
        assert await rig.store.steer(RunKey("local", "r_none"), "x") is Status.UNKNOWN

    async def test_an_inbox_is_bounded_however_many_steer_at_once(self, rig: Rig) -> None:
        """P7: judged in the step that takes the input, so that nobody can slip in between."""
        holder = await rig.running()
        answers = await asyncio.gather(*(rig.store.steer(holder.key, f"{n}", unread_max=3) for n in range(20)))
        assert Counter(answers) == {Status.OK: 3, Status.BUSY: 17}
        limits = replace(CALM, queued_behind_max=3)
        refused = await rig.store.create(new_run(policy=Policy.STEER, limits=limits))
        assert refused.status is Status.BUSY
        assert refused.record is not None
        assert refused.record.key == holder.key
        items = await rig.store.inbox(holder.key)
        assert len(items) == 3
        await holder.append(*_steered(*(item.input for item in items)), consumed=items[-1].n)
        assert await rig.store.steer(holder.key, "room again", unread_max=3) is Status.OK

    async def test_a_full_inbox_still_knows_what_it_took(self, rig: Rig) -> None:
        """The key is looked up before the bound: a client whose reply was lost must not hear that it was refused."""
        holder = await rig.running()
        limits = replace(CALM, queued_behind_max=2)
        new = new_run(policy=Policy.STEER, limits=limits, idempotency_key="a")
        assert (await rig.store.create(new)).status is Status.STEERED
        assert await rig.store.steer(holder.key, "one", "k", unread_max=2) is Status.OK
        assert await rig.store.steer(holder.key, "two", "l", unread_max=2) is Status.BUSY
        assert await rig.store.steer(holder.key, "one", "k", unread_max=2) is Status.OK
        assert (await rig.store.create(new)).status is Status.STEERED

    async def test_renew_tells_the_worker_of_unread_input(self, rig: Rig) -> None:
        """A lost wake costs at most one renewal."""
        holder = await rig.running()
        (before,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        await rig.store.steer(holder.key, "one")
        (after,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert (before.inbox, after.inbox) == (False, True)

    async def test_read_input_leaves_the_inbox_with_the_events_that_show_it(self, rig: Rig) -> None:
        """`consumed` is part of the append: after a crash the input was either read or is still there."""
        holder = await rig.running()
        for said in ("one", "two", "three"):
            await rig.store.steer(holder.key, said)
        first, second, third = await rig.store.inbox(holder.key)
        assert first.n < second.n < third.n
        assert (await holder.append(*_steered("one", "two"), consumed=second.n)).status is Status.OK
        assert [i.input for i in await rig.store.inbox(holder.key)] == ["three"]

    async def test_a_fenced_append_consumes_nothing(self, rig: Rig) -> None:
        """A worker that lost its run must not take the input with it."""
        holder = await rig.running()
        await holder.release()
        await rig.store.steer(holder.key, "one")
        (item,) = await rig.store.inbox(holder.key)
        assert (await holder.append(*_steered("one"), consumed=item.n)).status is Status.FENCED
        assert len(await rig.store.inbox(holder.key)) == 1

    async def test_completing_with_unread_input_is_refused(self, rig: Rig) -> None:
        """The agent reads it at its next safe point instead of ending over it."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "one")
        assert (await holder.finish()).status is Status.PENDING_INPUT
        assert await rig.state(holder.key) is State.RUNNING
        (item,) = await rig.store.inbox(holder.key)
        await holder.append(*_steered("one"), consumed=item.n)
        assert (await holder.finish()).status is Status.OK
        assert await _steered_runs(rig, holder.key) == []

    async def test_left_input_becomes_one_queued_run(self, rig: Rig) -> None:
        """An agent that cannot be steered ends; what the user wrote is then a prompt of its own, once."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "one")
        await rig.store.steer(holder.key, "two")
        assert (await holder.finish(leave_inbox=True)).status is Status.OK
        assert (await holder.repeat()).status is Status.DUP
        (made,) = await _steered_runs(rig, holder.key)
        assert (made.state, made.session, made.position) == (State.QUEUED, "s", 0)
        assert "one" in made.spec.input
        assert "two" in made.spec.input
        assert (made.spec.agent, (await rig.types(made.key))[0]) == ("echo", "run.created")
        assert await rig.drive() == [made.key]

    async def test_unread_input_of_a_failed_run_becomes_one_queued_run(self, rig: Rig) -> None:
        """If the run ends first, however it ends, unread input is not lost."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "one")
        assert (await holder.finish(State.FAILED)).status is Status.OK
        (made,) = await _steered_runs(rig, holder.key)
        assert (made.state, made.spec.input) == (State.QUEUED, "one")

    async def test_unread_input_of_a_reaped_run_becomes_one_queued_run(self, rig: Rig) -> None:
        """The same where the worker is gone and the reaper ends the run."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "one")
        await rig.store.disown()
        await rig.reap()
        assert await rig.ended(holder.key) == (State.FAILED, Reason.WORKER_LOST)
        (made,) = await _steered_runs(rig, holder.key)
        assert (made.state, made.spec.input) == (State.QUEUED, "one")

    async def test_unread_input_survives_a_new_attempt(self, rig: Rig) -> None:
        """The inbox belongs to the run, not to the worker that died."""
        key = await rig.create()
        first = await rig.take(key)
        await rig.store.steer(key, "one")
        await first.release()
        await rig.begin(key)
        assert [i.input for i in await rig.store.inbox(key)] == ["one"]

    async def test_unread_input_of_a_superseded_run_is_not_lost(self, rig: Rig) -> None:
        """P5: what the user wrote is in the history or in a prompt, whatever ended the run."""
        holder = await rig.running()
        await rig.store.steer(holder.key, "precious")
        new = await rig.create(policy=Policy.SUPERSEDE)
        await holder.finish(State.CANCELLED, Reason.SUPERSEDED)
        prompts = [r.spec.input for r in await _steered_runs(rig, holder.key, new)]
        history = await rig.store.history("local", "s")
        said = [m.text for entry in history for m in entry.messages]
        assert any("precious" in text for text in prompts + said)
        assert new in await rig.drive()
