"""Tenants: ids, sessions and keys of one say nothing about another's."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

import msgspec

from holdfast.domain.ids import SYNTHETIC_TENANT, RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Limits, Status, list_topic
from holdfast.testing.build import HOUR_MS, new_run
from holdfast.testing.harness import StoreCase
from holdfast.testing.rig import Rig

A, B = RunKey("a", "r_same"), RunKey("b", "r_same")


class Tenants(StoreCase):
    """P12: one tenant can neither see, stop nor starve another's runs."""

    async def test_equal_ids_are_different_runs(self, rig: Rig) -> None:
        """A client chooses its ids without knowing anybody else's."""
        await rig.create("s", tenant="a", run="r_same", text="of a")
        assert await rig.store.get(B) is None
        await rig.create("s", tenant="b", run="r_same", text="of b")
        assert (await rig.record(A)).spec.input == "of a"
        assert (await rig.record(B)).spec.input == "of b"
        assert [r.spec.input for r in await rig.runs("b")] == ["of b"]
        assert len(await rig.claim(n=5)) == 2

    async def test_equal_sessions_do_not_queue_behind_each_other(self, rig: Rig) -> None:
        """A busy session of one tenant is idle for another, and superseding stays at home."""
        await rig.create("s", tenant="a")
        await rig.create("s", tenant="b", policy=Policy.REJECT)
        await rig.create("s", tenant="b", policy=Policy.SUPERSEDE)
        (of_a,) = await rig.runs("a")
        assert (of_a.state, of_a.stopping) == (State.QUEUED, None)

    async def test_equal_idempotency_keys_do_not_meet(self, rig: Rig) -> None:
        """Otherwise one tenant's key would answer with another's run."""
        for tenant, body in (("a", "h1"), ("b", "h2")):
            new = new_run(tenant=tenant, idempotency_key="k", body_hash=body)
            assert (await rig.store.create(new)).status is Status.OK

    async def test_logs_are_apart(self, rig: Rig) -> None:
        """The events of one are not the events of the other."""
        await rig.create("s", tenant="a", run="r_same", text="of a")
        assert (await rig.store.read(B, 0)).status is Status.UNKNOWN
        await rig.create("s", tenant="b", run="r_same", text="of b")
        holders = {h.key: h for h in await rig.claim(n=2)}
        await holders[A].start()
        await holders[A].say("secret")
        assert await rig.types(B) == ["run.created"]
        assert [e.get("input") for e in await rig.log(B)] == ["of b"]
        await holders[B].start()
        await holders[B].finish()
        assert (await holders[A].finish()).status is Status.OK

    async def test_a_fence_opens_one_tenants_run_only(self, rig: Rig) -> None:
        """Equal ids and equal epochs: the token still differs."""
        await rig.create("s", tenant="a", run="r_same")
        await rig.create("s", tenant="b", run="r_same")
        holders = {h.key: h for h in await rig.claim(n=2)}
        holders[A].key = B
        assert (await holders[A].say("x")).status is Status.FENCED

    async def test_commands_reach_ones_own_runs_only(self, rig: Rig) -> None:
        """Stop, steer, edit, resume and delete of another's run find nothing."""
        await rig.create("s", tenant="a", run="r_same")
        assert (await rig.store.request_stop(B, Reason.STOPPED, "b")).status is Status.UNKNOWN
        assert await rig.store.steer(B, "x") is Status.UNKNOWN
        assert await rig.store.edit_input(B, "x") is Status.UNKNOWN
        assert (await rig.store.resume(B, [])).status is Status.UNKNOWN
        assert await rig.store.delete_session("b", "s", "b") is Status.UNKNOWN
        assert await rig.store.inbox(B) == []
        record = await rig.record(A)
        assert (record.state, record.stopping, record.spec.input) == (State.QUEUED, None, "hello")

    async def test_sessions_and_history_are_apart(self, rig: Rig) -> None:
        """A conversation is read by its own tenant only."""
        for tenant in ("a", "b"):
            await rig.create("s", tenant=tenant, text=f"of {tenant}")
        await rig.create("only a", tenant="a")
        active = await rig.store.active("b", "s")
        assert active is not None
        assert active.spec.input == "of b"
        assert await rig.store.active("b", "only a") is None
        await rig.drive(["a", "b"])
        (entry,) = await rig.store.history("b", "s")
        assert [m.text for m in entry.messages if m.role == "user"] == ["of b"]
        assert await rig.store.history("c", "s") == []
        assert [s.session for s in await rig.store.list_sessions("b")] == ["s"]
        assert await rig.store.get_session("b", "only a") is None
        assert await rig.store.list_sessions("c") == []

    async def test_deleting_a_session_leaves_another_tenants(self, rig: Rig) -> None:
        """The same name, another session."""
        for tenant in ("a", "b"):
            await rig.create("s", tenant=tenant)
        await rig.drive(["a", "b"])
        assert await rig.store.delete_session("a", "s", "a") is Status.OK
        assert len(await rig.store.history("b", "s")) == 1
        (of_b,) = await rig.runs("b")
        assert (await rig.store.read(of_b.key, 0)).status is Status.OK

    async def test_lists_wake_their_own_tenant(self, rig: Rig) -> None:
        """Even that something happens is nobody else's business."""
        with rig.store.subscribe(list_topic("b")) as wake:
            await rig.create("s", tenant="a")
            assert not await wake.wait(0.2)

    async def test_synthetic_runs_take_nobodys_place(self, rig: Rig) -> None:
        """What proves that runs are taken may not be why one is refused, nor be counted, nor be kept."""
        limits = Limits(runs_active_max=1)
        proof = new_run("p", tenant=SYNTHETIC_TENANT, limits=msgspec.structs.replace(limits, runs_active_max=100))
        assert (await rig.store.create(proof)).status is Status.OK
        assert (await rig.store.health())["runs"].get("queued", 0) == 0
        mine = new_run("s", tenant="a", limits=limits)
        assert (await rig.store.create(mine)).status is Status.OK
        assert (await rig.store.create(new_run("t", tenant="a", limits=limits))).status is Status.OVERLOADED
        assert (await rig.store.health())["runs"] == {"queued": 1}
        for holder in await rig.claim(n=2):
            await holder.start()
            await holder.finish()
        assert {k: n for k, n in (await rig.store.health())["runs"].items() if n} == {"completed": 1}
        assert await rig.store.delete_session(SYNTHETIC_TENANT, "p", "test") is Status.OK
        await rig.leap(120_000)
        await rig.sweep(older_than_ms=100 * HOUR_MS, bytes_max=2**50)
        assert (await rig.store.read(proof.key, 0)).status is Status.UNKNOWN
        assert (await rig.store.read(mine.key, 0)).status is Status.OK
