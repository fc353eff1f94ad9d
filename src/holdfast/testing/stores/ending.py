"""Ending: exactly one terminal event, and everything that hangs on it in the same step."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

import pytest

from holdfast.domain.messages import HistoryEntry, Message
from holdfast.domain.runs import REASONS, Reason, State
from holdfast.ports.store import Ending, Status
from holdfast.testing.build import new_run, terminal, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import Rig

ENDS = [(state, reason) for state, reasons in REASONS.items() for reason in sorted(reasons)]


class EndingRuns(StoreCase):
    """finish."""

    async def test_a_run_ends_with_every_state_and_reason(self, rig: Rig) -> None:
        """What the worker says is what the record says."""
        for n, (state, reason) in enumerate(ENDS):
            holder = await rig.running(f"s{n}")
            assert (await holder.finish(state, reason)).status is Status.OK
            assert await rig.ended(holder.key) == (state, reason)
            assert (await rig.types(holder.key))[-1] == f"run.{state}"

    async def test_finish_appends_and_ends_in_one_step(self, rig: Rig) -> None:
        """The last text and the terminal event come together; the record shows all of the ending."""
        holder = await rig.running()
        events = holder.encode(text(0, "bye"), terminal(State.FAILED, Reason.TOOL_ERROR))
        ending = Ending(
            State.FAILED,
            Reason.TOOL_ERROR,
            usage={"requests": 2},
            error={"code": "tool_error", "message": "m"},
            receipt={"by": "worker"},
            output="bye",
            ttft_ms=7,
        )
        answer = await rig.store.finish(holder.key, holder.fence, holder.head, events, ending)
        assert (answer.status, answer.head) == (Status.OK, holder.head + 2)
        record = await rig.record(holder.key)
        assert (record.usage, record.receipt, record.output) == ({"requests": 2}, {"by": "worker"}, "bye")
        assert record.error == {"code": "tool_error", "message": "m"}
        assert (record.ended_at is not None, record.ttft_ms) == (True, 7)
        assert (record.position, record.due_in_ms, record.lease_left_ms) == (None, None, None)
        assert (await rig.store.read(holder.key, holder.head)).events == events

    async def test_repeating_a_finish_answers_dup(self, rig: Rig) -> None:
        """A lost reply to the last write: one terminal event, history once, the successor promoted once."""
        holder = await rig.running()
        after = [await rig.create() for _ in range(2)]
        await holder.finish()
        head = holder.head
        for _ in range(3):
            again = await holder.repeat()
            assert (again.status, again.head) == (Status.DUP, head)
        assert len(await rig.log(holder.key)) == head
        assert len(await rig.store.history("local", "s")) == 1
        assert [(await rig.record(k)).position for k in after] == [0, 1]

    async def test_repeating_a_finish_answers_dup_while_the_successor_runs(self, rig: Rig) -> None:
        """The repeat may come late; it must not touch the run that took the session since."""
        holder = await rig.running()
        after = await rig.create()
        await holder.finish()
        successor = await rig.begin(after)
        assert (await holder.repeat()).status is Status.DUP
        assert (await successor.finish()).status is Status.OK

    async def test_a_finish_of_another_claim_is_fenced_not_dup(self, rig: Rig) -> None:
        """DUP would tell a zombie that its own end is the one that readers saw."""
        first = await rig.running()
        await first.release()
        second = await rig.begin(first.key)
        await second.finish()
        assert (await first.finish()).status is Status.FENCED

    async def test_a_finish_after_the_reaper_ended_the_run_is_fenced(self, rig: Rig) -> None:
        """The client already has the terminal event."""
        holder = await rig.running()
        await rig.store.disown()
        await rig.reap()
        assert (await holder.finish()).status is Status.FENCED
        assert await rig.ended(holder.key) == (State.FAILED, Reason.WORKER_LOST)

    async def test_finish_promotes_the_next_run(self, rig: Rig) -> None:
        """The slot is freed and taken in one step: no session is ever dead."""
        holder = await rig.running()
        after = await rig.create()
        assert (await rig.record(after)).ready_at is None
        await holder.finish()
        record = await rig.record(after)
        assert record.position == 0
        assert record.ready_at is not None
        await rig.begin(after)

    async def test_an_ended_run_is_not_active(self, rig: Rig) -> None:
        """A session without work is idle."""
        holder = await rig.running()
        active = await rig.store.active("local", "s")
        assert active is not None
        assert active.key == holder.key
        await holder.finish()
        assert await rig.store.active("local", "s") is None

    async def test_racing_finishes_leave_one_terminal_event(self, rig: Rig) -> None:
        """An executor that completes and a grace timer that cancels: the first wins, whichever it is."""
        for n in range(10):
            holder = await rig.running(f"s{n}")
            await asyncio.gather(holder.finish(State.COMPLETED), holder.finish(State.CANCELLED))
            assert (await rig.log(holder.key))[-1]["type"] == f"run.{await rig.state(holder.key)}"
            assert len(await rig.store.history("local", f"s{n}")) == 1

    async def test_finish_wins_over_a_stop_that_comes_after_it(self, rig: Rig) -> None:
        """[MC] a finish before the flag wins: the stop is told that the run has ended."""
        holder = await rig.running()
        await holder.finish()
        answer = await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        assert answer.status is Status.ENDED
        assert await rig.ended(holder.key) == (State.COMPLETED, Reason.FINISHED)

    @pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED])
    async def test_a_finish_after_the_stop_flag_answers_stop(self, rig: Rig, state: State) -> None:
        """[MC] finish(completed) races the stop flag: once the flag is set, the run can only be cancelled."""
        holder = await rig.running()
        await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        before = await rig.log(holder.key)
        assert (await holder.finish(state)).status is Status.STOP
        assert await rig.log(holder.key) == before
        assert (await holder.finish(State.CANCELLED, Reason.STOPPED)).status is Status.OK
        assert await rig.ended(holder.key) == (State.CANCELLED, Reason.STOPPED)

    async def test_a_stop_racing_a_finish_has_one_of_two_outcomes(self, rig: Rig) -> None:
        """[MC] completed and the stop was late, or the finish was refused: never completed after an OK stop."""
        for n in range(20):
            holder = await rig.running(f"s{n}")
            stopped, finished = await asyncio.gather(
                rig.store.request_stop(holder.key, Reason.STOPPED, "user"), holder.finish()
            )
            pair = (stopped.status, finished.status)
            assert pair in {(Status.OK, Status.STOP), (Status.ENDED, Status.OK)}

    async def test_history_given_by_finish_is_kept_as_it_is(self, rig: Rig) -> None:
        """An adapter's own form of the conversation comes back byte for byte."""
        holder = await rig.running()
        said = [Message("user", text="hello"), Message("assistant", text="hi")]
        entry = HistoryEntry(holder.key.run, "completed", said, "adapter", b"\x00\xffnative", [])
        await holder.finish(history=entry)
        assert await rig.store.history("local", "s") == [entry]

    async def test_an_ended_run_is_found_again_by_its_id(self, rig: Rig) -> None:
        """A create that is repeated after the end answers with the end."""
        new = new_run()
        await rig.store.create(new)
        await rig.drive()
        again = await rig.store.create(new)
        assert again.status is Status.EXISTS
        assert again.record is not None
        assert again.record.state is State.COMPLETED
