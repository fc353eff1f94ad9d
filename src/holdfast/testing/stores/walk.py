"""A random walk over every operation, compared with a reference model after every step."""

# ruff: noqa: S101, S311 - a test says what must hold, and its chance guards nothing

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from holdfast.domain.events import TERMINAL
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import REASONS, Policy, Reason, State
from holdfast.ports.store import RunRecord, Status
from holdfast.testing.build import CALM, new_run, text
from holdfast.testing.harness import StoreCase
from holdfast.testing.model import Model, ModelRun
from holdfast.testing.rig import GRACE_MS, Holder, Rig

WALKS = 12
STEPS = 120 if not os.environ.get("HOLDFAST_FULL") else 3_000
SESSIONS = ("s1", "s2", "s3")
BEHIND_MAX = 3
HOLDERS_MAX = 12


class Walking(StoreCase):
    """One active run per session, no lost promotion, one terminal event, every run ends."""

    @pytest.mark.parametrize("walk", range(WALKS))
    async def test_random_walk_agrees_with_the_model(self, rig: Rig, walk: int) -> None:
        """What no example thought of; HOLDFAST_SEED repeats a failure."""
        seed = int(os.environ.get("HOLDFAST_SEED") or random.randrange(2**32))
        print(f"HOLDFAST_SEED={seed} walk={walk}")  # noqa: T201 - repeats a failure
        await Walker(rig, seed).walk(STEPS)


class Walker:
    """Takes random steps on a store and a model, and compares them."""

    def __init__(self, rig: Rig, seed: int) -> None:
        """Begin with an empty store."""
        self._rig = rig
        self._chance = random.Random(seed)
        attempts = self._chance.randrange(1, 4)
        self._limits = replace(CALM, queued_behind_max=BEHIND_MAX, attempts_max=attempts)
        self._model = Model(BEHIND_MAX, attempts)
        self._holders: list[Holder] = []
        self.trail: list[str] = []

    async def walk(self, steps: int) -> None:
        """Take `steps` steps, then drive every run to its end."""
        moves: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (20, self._create),
            (20, self._claim),
            (12, self._start),
            (10, self._append),
            (14, self._finish),
            (6, self._repeat),
            (6, self._park),
            (8, self._resume),
            (5, self._release),
            (7, self._stop),
            (4, self._steer),
            (2, self._lose_workers),
            (2, self._let_grace_pass),
        ]
        weights = [weight for weight, _ in moves]
        for step in range(steps):
            (_, move) = self._chance.choices(moves, weights)[0]
            try:
                await move()
                await self._compare()
                if step % 20 == 0:
                    await self._compare_logs()
            except AssertionError as error:
                trail = "\n  ".join(self.trail[-25:])
                raise AssertionError(f"{error}\nafter step {step}, the last of:\n  {trail}") from error
        await self._end_all()

    async def _create(self) -> None:
        policies = [Policy.ENQUEUE] * 4 + [Policy.SUPERSEDE] * 2 + [Policy.REJECT, Policy.STEER]
        policy, session = self._chance.choice(policies), self._chance.choice(SESSIONS)
        new = new_run(session, policy=policy, limits=self._limits)
        created = await self._rig.store.create(new)
        self._note(f"create {new.key.run} {session} {policy}", created.status)
        assert created.status is self._model.create(new.key, session, policy)
        if self._chance.random() < 0.2 and created.status is Status.OK:
            assert (await self._rig.store.create(new)).status is Status.EXISTS

    async def _claim(self) -> None:
        many = self._chance.choice([1, 1, 2, 5])
        ready = self._model.ready()
        holders = await self._rig.claim(n=many)
        self._note(f"claim {many}", [h.key.run for h in holders])
        assert len(holders) == min(many, len(ready))
        for holder in holders:
            assert holder.key in ready
            self._model.claim(holder.key, holder.fence)
        self._holders = [*self._holders, *holders][-HOLDERS_MAX:]

    async def _start(self) -> None:
        if holder := self._holder():
            answer = await holder.start()
            self._note(f"start {holder.key.run} epoch {holder.fence.epoch}", answer.status)
            assert answer.status is self._model.start(holder.key, holder.fence)

    async def _append(self) -> None:
        if holder := self._holder():
            drafts = [text(0, "x") for _ in range(self._chance.randrange(1, 4))]
            answer = await holder.append(*drafts, checkpoint=self._chance.choice([None, b"cp"]))
            self._note(f"append {holder.key.run} epoch {holder.fence.epoch}", answer.status)
            assert answer.status is self._model.append(holder.key, holder.fence)

    async def _finish(self) -> None:
        if holder := self._holder():
            state = self._chance.choice([State.COMPLETED] * 3 + [State.FAILED, State.CANCELLED])
            reason = self._chance.choice(sorted(REASONS[state]))
            leave = self._chance.random() < 0.3
            expected = self._model.finish(holder.key, holder.fence, state, reason, leave_inbox=leave)
            answer = await holder.finish(state, reason, leave_inbox=leave)
            self._note(f"finish {holder.key.run} {state} leave={leave}", answer.status)
            assert answer.status is expected

    async def _repeat(self) -> None:
        """A repeat of whatever was written last, by anybody, changes nothing."""
        if holder := self._holder():
            before = (await self._rig.record(holder.key)).seq
            try:
                answer = await holder.repeat()
            except ValueError:
                return
            self._note(f"repeat {holder.key.run}", answer.status)
            if self._model.holds(holder.key, holder.fence) and answer.status is Status.OK:
                raise AssertionError("a repeat was written")
            assert (await self._rig.record(holder.key)).seq == before

    async def _park(self) -> None:
        if holder := self._holder():
            answer = await holder.park()
            self._note(f"park {holder.key.run}", answer.status)
            assert answer.status is self._model.park(holder.key, holder.fence)

    async def _resume(self) -> None:
        waiting = [k for k, r in self._model.runs.items() if r.state is State.WAITING]
        if key := self._any(waiting if waiting and self._chance.random() < 0.8 else None):
            answer = await self._rig.store.resume(key, [{"call": "c1", "approve": True}])
            self._note(f"resume {key.run}", answer.status)
            assert (answer.status is Status.OK) == self._model.resume(key)

    async def _release(self) -> None:
        if holder := self._holder():
            answer = await holder.release()
            self._note(f"release {holder.key.run}", answer.status)
            assert answer.status is self._model.release(holder.key, holder.fence)

    async def _stop(self) -> None:
        if key := self._any():
            reason = self._chance.choice([Reason.STOPPED, Reason.CLIENT_DISCONNECT])
            answer = await self._rig.store.request_stop(key, reason, "user")
            self._note(f"stop {key.run} {reason}", answer.status)
            assert answer.status is self._model.stop(key, reason)

    async def _steer(self) -> None:
        if key := self._any():
            status = await self._rig.store.steer(key, "and this", unread_max=BEHIND_MAX)
            self._note(f"steer {key.run}", status)
            assert status is self._model.steer(key)

    async def _lose_workers(self) -> None:
        count = await self._rig.store.disown()
        done = await self._rig.reap()
        self._note("lose workers", [(r.key.run, r.outcome) for r in done])
        live = self._live()
        touched = self._model.lose_workers()
        assert count == len(touched)
        assert {r.key for r in done} & live == touched

    async def _let_grace_pass(self) -> None:
        done = await self._rig.pass_time(GRACE_MS + 1_000)
        self._note("let grace pass", [(r.key.run, r.outcome) for r in done])
        live = self._live()
        assert {r.key for r in done} & live == self._model.let_grace_pass()

    def _live(self) -> set[RunKey]:
        """What reap can end; it tells of earlier ends, too, that their step could hand to nobody."""
        return {key for key, run in self._model.runs.items() if not run.state.terminal}

    async def _compare(self) -> None:
        records = {r.key: r for r in await self._rig.runs()}
        self._adopt_left_over(records)
        assert records.keys() == self._model.runs.keys()
        for key, run in self._model.runs.items():
            record = records[key]
            assert (record.state, record.reason) == (run.state, run.reason), record
            if not run.state.terminal:
                assert record.stopping == run.stopping, record
            if run.state is State.QUEUED:
                assert record.position == self._model.queues[run.session].index(key), record
        for session, queue in self._model.queues.items():
            active = await self._rig.store.active("local", session)
            assert (active and active.key) == (queue[0] if queue else None), (session, active, queue)

    def _adopt_left_over(self, records: dict[RunKey, RunRecord]) -> None:
        """Unread input of ended runs is a new run each; the store chose its id and place."""
        made = [r for key, r in records.items() if key not in self._model.runs]
        expected, self._model.left_over = self._model.left_over, []
        assert sorted(r.session for r in made) == sorted(expected), made
        for record in sorted(made, key=lambda r: r.position or 0):
            self.trail.append(f"    left over: {record.key.run} {record.state} {record.position}")
            assert record.state is State.QUEUED, record
            self._model.adopt(ModelRun(record.key, record.session), record.position)

    async def _compare_logs(self) -> None:
        for key, run in self._model.runs.items():
            events = await self._rig.log(key)
            assert (events[-1]["type"] in TERMINAL) == run.state.terminal, (run, events[-1])

    async def _end_all(self) -> None:
        for key, run in self._model.runs.items():
            if run.state is State.WAITING:
                await self._rig.store.resume(key, [])
        await self._rig.store.disown()
        await self._rig.reap()
        await self._rig.drive()
        records = await self._rig.runs()
        for record in records:
            assert (await self._rig.log(record.key))[-1]["type"] == f"run.{record.state}"
        for session in SESSIONS:
            runs = [e.run for e in await self._rig.store.history("local", session)]
            assert sorted(runs) == sorted(r.key.run for r in records if r.session == session)

    def _holder(self) -> Holder | None:
        if not self._holders:
            return None
        live = [h for h in self._holders if self._model.holds(h.key, h.fence)]
        if live and self._chance.random() < 0.7:
            return self._chance.choice(live)
        return self._chance.choice(self._holders)

    def _any(self, among: list[RunKey] | None = None) -> RunKey | None:
        keys = among if among is not None else list(self._model.runs)[-15:]
        return self._chance.choice(keys) if keys else None

    def _note(self, step: str, answer: object) -> None:
        self.trail.append(f"{step} -> {answer}")
