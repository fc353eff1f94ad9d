"""Listener leases: a run that is cancelled with the request that made it does not run on for nobody."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

from msgspec.structs import replace

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import new_run
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import LEASE_MS, Rig

LISTENER_MS = 4_000
STEP_MS = 1_000
GONE = (State.CANCELLED, Reason.CLIENT_DISCONNECT)


class Listening(StoreCase):
    """listener_ms, listen, and what reap does about it."""

    async def _create(self, rig: Rig) -> RunKey:
        created = await rig.store.create(replace(new_run(), listener_ms=LISTENER_MS))
        assert created.status is Status.OK
        assert created.record is not None
        return created.record.key

    async def _pass(self, rig: Rig, ms: int, *listened: RunKey) -> list[str]:
        """Time in which somebody reaps; what reap did."""
        done = []
        for _ in range(0, ms, STEP_MS):
            await rig.store.listen(listened, LISTENER_MS)
            done += [r.outcome for r in await rig.pass_time(STEP_MS)]
        return done

    async def test_a_queued_run_to_which_nobody_listens_ends(self, rig: Rig) -> None:
        """The request that made it died with its gateway before any worker took the run."""
        key = await self._create(rig)
        assert await self._pass(rig, LISTENER_MS - STEP_MS) == []
        assert await self._pass(rig, STEP_MS) == ["cancelled"]
        assert await rig.ended(key) == GONE

    async def test_a_running_run_to_which_nobody_listens_is_told_to_stop(self, rig: Rig) -> None:
        """By the flag that every stop uses, so that its worker closes the upstream."""
        key = await self._create(rig)
        holder = await rig.take(key)
        assert await self._pass(rig, LISTENER_MS + STEP_MS) == ["stopping"]
        (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
        assert (renewal.stop, renewal.lost) == (Reason.CLIENT_DISCONNECT, False)
        await holder.finish(*GONE)
        assert await rig.ended(key) == GONE

    async def test_a_listener_keeps_its_run(self, rig: Rig) -> None:
        """For as long as it says so."""
        key, other = await self._create(rig), await self._create(rig)
        assert await rig.store.listen([key, other], LISTENER_MS) == [key, other]
        assert await self._pass(rig, 3 * LISTENER_MS, key) == ["cancelled"]
        assert (await rig.record(key)).state is State.QUEUED
        assert await rig.ended(other) == GONE

    async def test_a_run_without_a_listener_needs_none(self, rig: Rig) -> None:
        """on_disconnect continue; and nobody can take it over by listening."""
        key = await rig.create()
        assert await rig.store.listen([key], LISTENER_MS) == []
        assert await self._pass(rig, 3 * LISTENER_MS) == []
        assert (await rig.record(key)).state is State.QUEUED

    async def test_an_ended_run_needs_no_listener(self, rig: Rig) -> None:
        """So that its gateway can forget it."""
        key = await self._create(rig)
        holder = await rig.take(key)
        await holder.finish()
        assert await rig.store.listen([key], LISTENER_MS) == []
        assert await self._pass(rig, 2 * LISTENER_MS) == []

    async def test_an_earlier_stop_keeps_its_reason(self, rig: Rig) -> None:
        """The first reason counts, as always."""
        key = await self._create(rig)
        await rig.take(key)
        await rig.store.request_stop(key, Reason.STOPPED, "user")
        await self._pass(rig, LISTENER_MS + STEP_MS)
        record = await rig.record(key)
        assert Reason.STOPPED in (record.stopping, record.reason)

    async def test_a_pause_of_everybody_costs_no_listener(self, rig: Rig) -> None:
        """Lease time passes only while somebody reaps: a gateway that was stopped for a minute finds its runs."""
        key = await self._create(rig)
        await rig.reap()
        await rig.leap(60_000)
        assert await rig.reap() == []
        assert await self._pass(rig, STEP_MS, key) == []
        assert (await rig.record(key)).state is State.QUEUED

    async def test_the_next_in_the_session_begins(self, rig: Rig) -> None:
        """A run that ends for want of a listener frees its session like any other."""
        key = await self._create(rig)
        follower = await rig.create(policy=Policy.ENQUEUE)
        assert await self._pass(rig, LISTENER_MS) == ["cancelled"]
        (claim,) = await rig.store.claim("w", 1, LEASE_MS)
        assert claim.key == follower
        assert [(e.key, e.reason, e.by) for e in claim.before] == [(key, Reason.CLIENT_DISCONNECT, "reaper")]
