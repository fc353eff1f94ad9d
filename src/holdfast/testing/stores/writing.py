"""Writing: every write is fenced, whole, and safe to repeat."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from holdfast.domain.events import EventType
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.ports.store import Fence, RunSpec, Status
from holdfast.testing.build import CALM, encode, new_run, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import Holder, Rig, timeless

OTHER_TOKEN = "c_00000000000000000000"  # noqa: S105 - half of a fence, no secret


class Writing(StoreCase):
    """append, and the fence that all writes share."""

    async def test_an_append_is_in_the_log_when_it_returns(self, rig: Rig) -> None:
        """An event is visible only after the store acknowledged it, and then to everybody, byte for byte."""
        holder = await rig.running()
        base, events = holder.head, holder.encode(text(0, "a"), text(0, "b"))
        answer = await rig.store.append(holder.key, holder.fence, base, events)
        assert (answer.status, answer.head) == (Status.OK, base + 2)
        page = await rig.store.read(holder.key, base)
        assert page.events == events
        assert page.epochs == [holder.fence.epoch] * 2
        assert (await rig.record(holder.key)).seq == base + 2

    async def test_an_append_of_a_thousand_events_is_one_step(self, rig: Rig) -> None:
        """The bound of the port is usable."""
        holder = await rig.running()
        assert (await holder.append(*[text(0, f"{n} ") for n in range(1_000)])).status is Status.OK
        assert len(await rig.log(holder.key)) == holder.head == 1_002

    async def test_run_started_sets_the_attempt_in_the_record(self, rig: Rig) -> None:
        """A claim becomes an attempt when its worker says so in the log."""
        key = await rig.create()
        holder = await rig.take(key)
        assert (await rig.record(key)).started_at is None
        await holder.start()
        record = await rig.record(key)
        assert record.started_at is not None
        assert record.attempt == 1

    async def test_repeating_an_append_answers_dup(self, rig: Rig) -> None:
        """A lost reply: the worker repeats, and nothing is there twice."""
        holder = await rig.running()
        await holder.append(text(0, "a"), text(0, "b"), checkpoint=b"cp")
        for _ in range(3):
            again = await holder.repeat()
            assert (again.status, again.head) == (Status.DUP, holder.head)
        assert len(await rig.log(holder.key)) == holder.head

    async def test_a_batch_of_unknown_outcome_is_repeated_then_the_log_goes_on(self, rig: Rig) -> None:
        """[READ] unknown append, more deltas, retry: the frozen batch answers DUP, then the rest is appended."""
        holder = await rig.running()
        await holder.say("a")
        assert (await holder.repeat()).status is Status.DUP
        assert (await holder.say("b")).status is Status.OK
        assert (await holder.finish()).status is Status.OK
        said = [e["text"] for e in await rig.log(holder.key) if e["type"] == EventType.TEXT_DELTA]
        assert said == ["a", "b"]

    async def test_a_repeat_that_grew_is_a_gap_and_writes_nothing(self, rig: Rig) -> None:
        """[READ] a batch that was coalesced further is no repeat; all or none of it is written: none."""
        holder = await rig.running()
        base = holder.head
        one, two = holder.encode(text(0, "a"), text(0, "b"))
        await rig.store.append(holder.key, holder.fence, base, [one])
        grown = await rig.store.append(holder.key, holder.fence, base, [one, two])
        assert (grown.status, grown.head) == (Status.GAP, base + 1)
        assert (await rig.store.read(holder.key, base)).events == [one]

    async def test_other_events_at_an_old_base_are_a_gap(self, rig: Rig) -> None:
        """The same number of events is not enough for a repeat: they must be the same bytes."""
        holder = await rig.running()
        base = holder.head
        await holder.say("a")
        other = encode(holder.key.run, base, [text(0, "z")])
        answer = await rig.store.append(holder.key, holder.fence, base, other)
        assert (answer.status, answer.head) == (Status.GAP, base + 1)

    async def test_a_base_beyond_the_head_is_a_gap(self, rig: Rig) -> None:
        """[READ] store regress: head 110, worker base 120. Writing on would reuse seqs for other content."""
        holder = await rig.running()
        base = holder.head + 10
        events = encode(holder.key.run, base, [text(0, "a")])
        answer = await rig.store.append(holder.key, holder.fence, base, events)
        assert (answer.status, answer.head) == (Status.GAP, holder.head)
        assert len(await rig.log(holder.key)) == holder.head

    async def test_a_finish_beyond_the_head_is_a_gap(self, rig: Rig) -> None:
        """[READ] the same for the last write of a run: it stays running, for a new claim to go on."""
        holder = await rig.running()
        head, holder.head = holder.head, holder.head + 10
        assert (await holder.finish()).status is Status.GAP
        assert await rig.state(holder.key) is State.RUNNING
        assert len(await rig.log(holder.key)) == head

    async def test_a_run_that_nobody_holds_takes_no_write(self, rig: Rig) -> None:
        """Queued and unknown runs have no writer."""
        key = await rig.create()
        events = encode(key.run, 1, [text(0, "a")])
        assert (await rig.store.append(key, Fence(0, ""), 1, events)).status is Status.FENCED
        nobody = RunKey("local", "r_none")
        answer = await rig.store.append(nobody, Fence(1, "c"), 0, events)
        assert answer.status in {Status.FENCED, Status.UNKNOWN}
        assert await rig.types(key) == ["run.created"]

    async def test_the_fence_checks_the_claim_token(self, rig: Rig) -> None:
        """[MC] a failover loses a claim, the next one gets the same epoch: only one of both may write."""
        holder = await rig.running()
        await _assert_fenced(rig, holder, Fence(holder.fence.epoch, OTHER_TOKEN))
        assert (await holder.finish()).status is Status.OK

    async def test_the_fence_checks_the_epoch(self, rig: Rig) -> None:
        """The token alone is not enough either."""
        holder = await rig.running()
        await _assert_fenced(rig, holder, Fence(holder.fence.epoch - 1, holder.fence.claim))
        await _assert_fenced(rig, holder, Fence(holder.fence.epoch + 1, holder.fence.claim))

    async def test_the_fence_checks_the_state(self, rig: Rig) -> None:
        """[MC] claim, finish, the abandoned task appends: nothing comes after the terminal event."""
        holder = await rig.running()
        await holder.finish()
        assert (await holder.say("late")).status is Status.FENCED
        assert (await holder.park()).status is Status.FENCED
        assert (await holder.release()).status is Status.FENCED
        assert (await rig.types(holder.key))[-1] == "run.completed"

    async def test_an_append_is_fenced_after_release(self, rig: Rig) -> None:
        """Whoever gave its run back writes nothing more, claimed again or not."""
        holder = await rig.running()
        await holder.release()
        await _assert_fenced(rig, holder, holder.fence)
        await rig.begin(holder.key)
        await _assert_fenced(rig, holder, holder.fence)

    async def test_an_append_is_fenced_after_reap(self, rig: Rig) -> None:
        """A worker that slept through its lease finds that it is not the writer any more."""
        holder = await rig.running(limits=replace(CALM, attempts_max=2))
        await rig.store.disown()
        await rig.reap()
        await _assert_fenced(rig, holder, holder.fence)
        await rig.begin(holder.key)
        await _assert_fenced(rig, holder, holder.fence)

    async def test_an_append_is_fenced_while_parked(self, rig: Rig) -> None:
        """A parked run has no writer."""
        holder = await rig.running()
        await holder.park()
        await _assert_fenced(rig, holder, holder.fence)

    async def test_a_repeat_by_the_next_claim_is_no_dup(self, rig: Rig) -> None:
        """DUP says `exactly this was written before by this claim`; the bytes of another's are a gap."""
        first = await rig.running()
        base = first.head
        await first.say("a")
        await first.release()
        second = await rig.take(first.key)
        same = encode(first.key.run, base, [text(0, "a")])
        assert (await rig.store.append(first.key, second.fence, base, same)).status is Status.GAP

    async def test_one_failing_write_harms_no_other(self, rig: Rig) -> None:
        """[READ] writer thread: one raising operation must not fail its batch, nor kill the thread."""
        holders = [await rig.running(f"s{n}") for n in range(5)]
        spec = RunSpec(input="x", agent="echo", metadata={"x": {1j: object()}})
        poison = rig.store.create(replace(new_run("bad"), spec=spec))
        poisoned, *answers = await asyncio.gather(poison, *(h.say("a") for h in holders), return_exceptions=True)
        assert isinstance(poisoned, Exception)
        assert [getattr(a, "status", a) for a in answers] == [Status.OK] * 5
        for holder in holders:
            assert (await holder.finish()).status is Status.OK

    async def test_concurrent_appends_to_many_runs_do_not_mix(self, rig: Rig) -> None:
        """Writes that are committed together still belong to their own logs."""
        holders = [await rig.running(f"s{n}") for n in range(20)]

        async def write(holder: Holder) -> None:
            for n in range(10):
                assert (await holder.say(f"{holder.key.run}:{n}")).status is Status.OK

        await asyncio.gather(*(write(h) for h in holders))
        for holder in holders:
            said = [e["text"] for e in await rig.log(holder.key) if e["type"] == "text.delta"]
            assert said == [f"{holder.key.run}:{n}" for n in range(10)]

    async def test_racing_writes_of_one_claim_leave_a_contiguous_log(self, rig: Rig) -> None:
        """Two tasks of one worker that both believe in one head: one wins, the other is told."""
        holder = await rig.running()
        base = holder.head
        batches = [encode(holder.key.run, base, [text(0, f"{n}")]) for n in range(10)]
        answers = await asyncio.gather(*(rig.store.append(holder.key, holder.fence, base, b) for b in batches))
        assert sorted(a.status for a in answers) == [Status.GAP] * 9 + [Status.OK]
        assert len(await rig.log(holder.key)) == base + 1


async def _assert_fenced(rig: Rig, holder: Holder, fence: Fence) -> None:
    """No write with `fence` gets in, and none leaves a trace."""
    before = await rig.log(holder.key)
    record = timeless(await rig.record(holder.key))
    true, holder.fence = holder.fence, fence
    try:
        assert (await holder.say("late")).status is Status.FENCED
        for state in (State.COMPLETED, State.FAILED, State.CANCELLED):
            assert (await holder.finish(state)).status is Status.FENCED
        assert (await holder.park()).status is Status.FENCED
        assert (await holder.release()).status is Status.FENCED
    finally:
        holder.fence = true
    assert await rig.log(holder.key) == before
    assert timeless(await rig.record(holder.key)) == record
