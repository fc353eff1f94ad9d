"""Reopening: what was acknowledged is there after every process is gone."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import pytest
from msgspec.structs import replace

from holdfast.domain.runs import Reason, State
from holdfast.ports.store import Status
from holdfast.testing.build import CALM, text
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import LEASE_MS, Rig, timeless


class Reopening(StoreCase):
    """P9, as far as one process can show it."""

    async def test_everything_is_there_after_a_restart(self, rig: Rig, harness: StoreHarness) -> None:
        """Records, logs, queues, stop flags, inboxes, checkpoints, history."""
        if not harness.durable:
            pytest.skip("this store lives as long as its handle")
        done = await rig.running("s1")
        await done.finish()
        running = await rig.running("s1")
        await running.append(text(0, "x"), checkpoint=b"cp")
        await rig.store.steer(running.key, "later")
        behind = await rig.create("s1")
        flagged = await rig.running("s2")
        await rig.store.request_stop(flagged.key, Reason.STOPPED, "user")
        parked = await rig.running("s3")
        await parked.park()
        before = [timeless(r) for r in await rig.runs()]
        logs = {r.key: await rig.log(r.key) for r in before}

        again = rig.at(await harness.reopen())
        assert [timeless(r) for r in await again.runs()] == before
        assert {key: await again.log(key) for key in logs} == logs
        assert [e.run for e in await again.store.history("local", "s1")] == [done.key.run]
        assert [i.input for i in await again.store.inbox(running.key)] == ["later"]
        (renewal,) = await again.store.renew("w", [flagged.held], LEASE_MS)
        assert renewal.stop is Reason.STOPPED
        assert (await again.store.resume(parked.key, [])).status is Status.OK
        await again.store.disown()
        await again.reap()
        await again.drive()
        assert await again.state(behind) is State.COMPLETED

    async def test_a_worker_goes_on_after_the_store_was_restarted(self, rig: Rig, harness: StoreHarness) -> None:
        """The fence is in the store: a restart alone takes nobody's run away."""
        if not harness.durable:
            pytest.skip("this store lives as long as its handle")
        key = await rig.create(limits=replace(CALM, attempts_max=1))
        await rig.begin(key)
        claim_log = await rig.log(key)
        again = rig.at(await harness.reopen())
        assert await again.log(key) == claim_log
        assert await again.state(key) is State.RUNNING
        await again.leap(60_000)
        assert await again.reap() == []
        assert await again.state(key) is State.RUNNING
