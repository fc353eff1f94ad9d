"""Sessions: lists, forgetting, and the history that a model is given."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM, HOUR_MS, discarded, text, text_done, tool_called, tool_finished
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import LEASE_MS, Rig


class SessionLists(StoreCase):
    """list_sessions, get_session, active."""

    async def test_a_session_says_what_is_in_it(self, rig: Rig) -> None:
        """The list of conversations shows which of them work."""
        assert await rig.store.get_session("local", "s") is None
        holder = await rig.running()
        await rig.create()
        await rig.create()
        record = await rig.store.get_session("local", "s")
        assert record is not None
        assert record.active is not None
        assert record.active.key == holder.key
        assert (record.session, record.queued, record.runs) == ("s", 2, 3)
        await holder.finish()
        await rig.drive()
        record = await rig.store.get_session("local", "s")
        assert record is not None
        assert (record.active, record.queued, record.runs) == (None, 0, 3)

    async def test_sessions_are_listed_most_recently_used_first(self, rig: Rig) -> None:
        """In pages that neither repeat nor miss one."""
        for n in range(12):
            await rig.create(f"s{n}")
            await rig.leap(10)
        await rig.create("s3")
        found: list[str] = []
        for _ in range(4):
            page = await rig.store.list_sessions("local", limit=5, after=found[-1] if found else "")
            found += [s.session for s in page]
        assert found == ["s3", *(f"s{n}" for n in range(11, -1, -1) if n != 3)]

    async def test_sessions_of_one_millisecond_are_all_listed(self, rig: Rig) -> None:
        """A page's end among equal times must not lose or repeat one."""
        for n in range(11):
            await rig.create(f"s{n}")
        found: list[str] = []
        for _ in range(6):
            page = await rig.store.list_sessions("local", limit=2, after=found[-1] if found else "")
            found += [s.session for s in page]
        assert sorted(found) == sorted(f"s{n}" for n in range(11))


class ForgettingRuns(StoreCase):
    """forget."""

    async def test_a_forgotten_run_is_gone_and_the_others_of_its_session_are_not(self, rig: Rig) -> None:
        """Its log, its record, and what it left in the history; the runs beside it keep all of theirs."""
        first = await rig.running(text="first")
        await first.finish()
        second = await rig.running(text="second")
        assert await rig.store.forget(second.key) is Status.BUSY
        await second.finish()
        assert await rig.store.forget(first.key) is Status.OK
        assert await rig.store.get(first.key) is None
        assert (await rig.store.read(first.key, 0)).status is Status.GONE
        assert [e.run for e in await rig.store.history("local", "s")] == [second.key.run]
        assert [r.key for r in await rig.store.list_runs("local", session="s")] == [second.key]
        assert (await rig.store.read(second.key, 0)).events
        assert await rig.store.forget(first.key) is Status.GONE
        assert await rig.store.forget(RunKey("other", second.key.run)) is Status.UNKNOWN
        await rig.store.sweep(older_than_ms=100 * HOUR_MS, bytes_max=10**9)
        assert (await rig.store.read(first.key, 0)).status is Status.GONE


class Forgetting(StoreCase):
    """delete_session."""

    async def test_a_forgotten_session_is_gone(self, rig: Rig) -> None:
        """History, list and logs: nothing can be read any more, and a reader is told."""
        holder = await rig.running()
        await holder.finish()
        assert await rig.store.delete_session("local", "s", "user") is Status.OK
        assert await rig.store.history("local", "s") == []
        assert await rig.store.get_session("local", "s") is None
        assert (await rig.store.read(holder.key, 0)).status is Status.GONE
        statuses = [page.status async for page in rig.store.tail(holder.key, 0)]
        assert statuses == [Status.GONE]

    async def test_forgetting_an_unknown_session_says_so(self, rig: Rig) -> None:
        """Never OK for a wrong name."""
        assert await rig.store.delete_session("local", "none", "user") is Status.UNKNOWN

    async def test_forgetting_stops_what_runs_and_what_waits(self, rig: Rig) -> None:
        """Stops first: no worker goes on for a conversation that nobody can read."""
        holder = await rig.running()
        await rig.create()
        assert await rig.store.delete_session("local", "s", "user") is Status.OK
        (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert renewal.lost or renewal.stop is not None
        assert (await holder.finish()).status in {Status.STOP, Status.FENCED}
        answer = await holder.finish(State.CANCELLED, Reason.STOPPED)
        assert answer.status in {Status.OK, Status.FENCED}
        assert await rig.claim(n=5) == []
        assert await rig.store.history("local", "s") == []

    async def test_a_later_create_begins_anew(self, rig: Rig) -> None:
        """[READ] DELETE of a session races a create: a generation tells the two lives apart."""
        old = await rig.running(text="old")
        await rig.store.delete_session("local", "s", "user")
        new = await rig.create(text="new")
        await old.finish(State.CANCELLED, Reason.STOPPED)
        assert await rig.drive() == [new]
        assert [e.run for e in await rig.store.history("local", "s")] == [new.run]
        record = await rig.store.get_session("local", "s")
        assert record is not None
        assert (record.active, record.queued) == (None, 0)

    async def test_the_reaper_ends_an_old_run_outside_the_new_history(self, rig: Rig) -> None:
        """[READ] the same where the old run's worker is gone."""
        await rig.running(text="old")
        await rig.store.delete_session("local", "s", "user")
        new = await rig.create(text="new")
        await rig.store.disown()
        await rig.pass_time(5_000)
        assert await rig.drive() == [new]
        assert [e.run for e in await rig.store.history("local", "s")] == [new.run]

    async def test_a_delete_racing_creates_loses_no_run(self, rig: Rig) -> None:
        """[READ] whichever comes first, every accepted run ends, and the session works on."""
        for n in range(10):
            session = f"s{n}"
            await rig.create(session)
            creates = [rig.create(session, policy=p) for p in (Policy.ENQUEUE, Policy.SUPERSEDE)]
            await asyncio.gather(*creates, rig.store.delete_session("local", session, "user"))
        await rig.drive()
        for n in range(10):
            last = await rig.create(f"s{n}")
            assert await rig.drive() == [last]


class Histories(StoreCase):
    """history: what each way of ending a run leaves."""

    async def test_history_is_in_order_of_the_conversation(self, rig: Rig) -> None:
        """The model reads it from the top."""
        keys = [await rig.create(text=f"{n}") for n in range(4)]
        await rig.drive()
        history = await rig.store.history("local", "s")
        assert [e.run for e in history] == [k.run for k in keys]
        assert [e.state for e in history] == ["completed"] * 4
        assert [e.messages[0].text for e in history] == ["0", "1", "2", "3"]

    async def test_a_history_that_finish_left_out_is_derived_from_the_log(self, rig: Rig) -> None:
        """[READ] input, finished tools, partial text marked interrupted: P5 for an end of any kind."""
        holder = await rig.running(text="question")
        await holder.append(
            text(0, "Let me "),
            text(0, "look."),
            text_done(0, "Let me look."),
            tool_called("c1", x=1),
            tool_finished("c1", {"found": 7}),
            text(1, "It is sev"),
        )
        await holder.finish(State.FAILED, Reason.MODEL_STALLED)
        (entry,) = await rig.store.history("local", "s")
        assert (entry.run, entry.state) == (holder.key.run, "failed")
        user, asked, result, answer = entry.messages
        assert (user.role, user.text) == ("user", "question")
        assert (asked.role, asked.text, asked.interrupted) == ("assistant", "Let me look.", False)
        assert [(c.call, c.name, c.args) for c in asked.calls] == [("c1", "look", {"x": 1})]
        assert (result.role, result.call, result.outcome, result.result) == (
            "tool",
            "c1",
            "success",
            {"found": 7},
        )
        assert (answer.role, answer.text, answer.interrupted) == ("assistant", "It is sev", True)

    async def test_a_completed_run_is_not_interrupted(self, rig: Rig) -> None:
        """The same derivation for a worker that gives no history of its own."""
        holder = await rig.running(text="q")
        await holder.append(text(0, "an"), text(0, "swer"), text_done(0, "answer"))
        await holder.finish()
        (entry,) = await rig.store.history("local", "s")
        assert [(m.role, m.text, m.interrupted) for m in entry.messages] == [
            ("user", "q", False),
            ("assistant", "answer", False),
        ]

    async def test_discarded_attempts_are_not_in_the_history(self, rig: Rig) -> None:
        """[READ] epoch 1 showed 'Hello wor', epoch 2 regenerates it: the model must not read both."""
        holder = await rig.running(text="q")
        await holder.append(text(0, "Hello wor"), tool_called("c1"))
        await holder.append(discarded(parts=[0], calls=["c1"]))
        await holder.append(text(1, "Hello world"), text_done(1, "Hello world"))
        await holder.finish()
        (entry,) = await rig.store.history("local", "s")
        assert [m.text for m in entry.messages] == ["q", "Hello world"]
        assert entry.messages[1].calls == []

    async def test_a_reaped_run_is_in_the_history(self, rig: Rig) -> None:
        """[READ] runs ended by the reaper have no messages of their own: the next prompt still sees them."""
        holder = await rig.running(text="question")
        await holder.append(tool_called("c1"), tool_finished("c1", 7), tool_called("c2"), text(0, "par"))
        await rig.store.disown()
        await rig.reap()
        (entry,) = await rig.store.history("local", "s")
        assert (entry.run, entry.state) == (holder.key.run, "failed")
        assert entry.messages[0].text == "question"
        results = {m.call: m.outcome for m in entry.messages if m.role == "tool"}
        assert results == {"c1": "success", "c2": "interrupted"}
        assert [m.text for m in entry.messages if m.interrupted] == ["par"]

    async def test_a_run_that_never_started_adds_its_input(self, rig: Rig) -> None:
        """[READ] runs ended in the queue: what the user wrote is never deleted."""
        stopped = await rig.create(text="stopped")
        await rig.store.request_stop(stopped, Reason.STOPPED, "user")
        timed_out = await rig.create(text="timed out", limits=replace(CALM, queue_timeout_ms=5_000))
        await rig.pass_time(6_000)
        history = await rig.store.history("local", "s")
        assert [(e.run, e.state) for e in history] == [
            (stopped.run, "cancelled"),
            (timed_out.run, "failed"),
        ]
        assert [[m.text for m in e.messages] for e in history] == [["stopped"], ["timed out"]]

    async def test_a_parked_run_that_was_stopped_is_in_the_history(self, rig: Rig) -> None:
        """request_stop ends it: the terminal step of any kind puts a run into the history, once."""
        holder = await rig.running(text="question")
        await holder.append(text(0, "May I?"))
        await holder.park()
        for _ in range(2):
            await rig.store.request_stop(holder.key, Reason.STOPPED, "user")
        (entry,) = await rig.store.history("local", "s")
        assert [(m.text, m.interrupted) for m in entry.messages] == [("question", False), ("May I?", True)]

    async def test_every_end_is_in_the_history_once(self, rig: Rig) -> None:
        """finish, reap, request_stop and create: four ways to end, one entry each."""
        finished = await rig.running(text="finished")
        await finished.finish()
        reaped = await rig.running(text="reaped")
        await rig.store.disown()
        await rig.reap()
        await rig.reap()
        stopped = await rig.create(text="stopped")
        await rig.store.request_stop(stopped, Reason.STOPPED, "user")
        superseded = await rig.create(text="superseded")
        last = await rig.create(text="last", policy=Policy.SUPERSEDE)
        await rig.drive()
        runs = [e.run for e in await rig.store.history("local", "s")]
        assert runs == [k.run for k in (finished.key, reaped.key, stopped, superseded, last)]
