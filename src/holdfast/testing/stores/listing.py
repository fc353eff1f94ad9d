"""Listing: what tells a list that it is out of date."""

# ruff: noqa: S101 - a test says what must hold

from __future__ import annotations

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import ROSTER_MADE, Status
from holdfast.testing.build import HOUR_MS
from holdfast.testing.harness import StoreCase, StoreHarness
from holdfast.testing.rig import Rig

TENANT = "local"


async def marks(rig: Rig, *known: RunKey, since: int = 0, tenant: str = TENANT) -> dict[str, str]:
    """The mark of each run that a roster names."""
    roster = await rig.store.roster(tenant, since, [key.run for key in known])
    found = {glance.run: glance.mark for glance in roster.glances}
    assert len(found) == len(roster.glances), "a run is named twice"
    return found


class Listing(StoreCase):
    """roster."""

    async def test_every_change_of_a_run_changes_its_mark(self, rig: Rig) -> None:
        """What a mark does not show, no list that follows the runs would ever learn."""
        first, key = await rig.create(), await rig.create()
        seen = [(await marks(rig))[key.run]]

        async def look() -> None:
            seen.append((await marks(rig, key))[key.run])

        await rig.store.edit_input(key, "another")
        await look()
        await rig.complete(await rig.take(first))  # it is at the head of its session now
        await look()
        holder = await rig.take(key)
        await look()
        await holder.start()
        await look()
        await holder.park()
        await look()
        await rig.store.resume(key, [{"call": "c1", "approve": True}])
        await look()
        holder = await rig.begin(key)
        await look()
        await rig.store.request_stop(key, Reason.STOPPED, "user")
        await look()
        await holder.finish(State.CANCELLED)
        await look()
        assert len(set(seen)) == len(seen) == 10

    async def test_what_a_run_says_is_no_change_of_it(self, rig: Rig) -> None:
        """Else every token of every run would be news to every list."""
        holder = await rig.running()
        before = await marks(rig)
        await holder.say("x")
        assert await marks(rig) == before

    async def test_a_run_that_came_and_went_between_two_looks_is_named(self, rig: Rig) -> None:
        """It was never seen unfinished, and its end is news all the same."""
        upto = (await rig.store.roster(TENANT, 0, [])).upto
        key = await rig.create()
        await rig.drive()
        roster = await rig.store.roster(TENANT, upto, [])
        assert [glance.run for glance in roster.glances] == [key.run]
        assert roster.glances[0].number == roster.upto > upto
        assert (await rig.store.roster(TENANT, roster.upto, [])).glances == []

    async def test_numbers_are_in_order_of_creation(self, rig: Rig) -> None:
        """By them a list knows which is the newer of two runs of one millisecond."""
        keys = [await rig.create(f"s{n}") for n in range(5)]
        found = {glance.run: glance.number for glance in (await rig.store.roster(TENANT, 0, [])).glances}
        assert sorted(found, key=found.__getitem__) == [key.run for key in keys]

    async def test_what_does_not_fit_is_in_the_next_look(self, rig: Rig) -> None:
        """More runs than fit may come and go between two looks; none of them is passed over."""
        made = {(await rig.create(f"s{n}")).run for n in range(ROSTER_MADE + 5)}
        await rig.drive()
        found, upto = set(), 0
        for _ in range(2):
            roster = await rig.store.roster(TENANT, upto, [])
            assert len(roster.glances) <= ROSTER_MADE
            found |= {glance.run for glance in roster.glances}
            upto = roster.upto
        assert found == made

    async def test_an_old_run_is_named_until_it_has_ended(self, rig: Rig) -> None:
        """Whatever came after it: a list keeps what is unfinished, and asks for what it shows of the rest."""
        holder = await rig.running()
        upto = (await rig.store.roster(TENANT, 0, [])).upto
        assert list(await marks(rig, since=upto)) == [holder.key.run]
        await holder.finish()
        assert await marks(rig, since=upto) == {}
        assert list(await marks(rig, holder.key, since=upto)) == [holder.key.run]

    async def test_what_was_deleted_is_named_no_more(self, rig: Rig) -> None:
        """By its absence a list learns that it has to drop it."""
        key, other = await rig.create("s"), await rig.create("t")
        await rig.drive()
        assert set(await marks(rig, key, other)) == {key.run, other.run}
        assert await rig.store.delete_session(TENANT, "s", "test") is Status.OK
        assert set(await marks(rig, key, other)) == {other.run}
        assert await rig.store.forget(other) is Status.OK
        assert await marks(rig, key, other, RunKey(TENANT, "r_never")) == {}
        await rig.leap(HOUR_MS)
        await rig.sweep(older_than_ms=0, bytes_max=0)
        assert await marks(rig, key, other) == {}

    async def test_a_roster_is_of_one_tenant(self, rig: Rig) -> None:
        """P12: not even that there are others."""
        await rig.create("s", tenant="a", run="r_a")
        await rig.create("s", tenant="b", run="r_b")
        assert set(await marks(rig, RunKey("a", "r_a"), tenant="b")) == {"r_b"}
        await rig.drive(["a", "b"])
        assert set(await marks(rig, RunKey("a", "r_a"), tenant="b")) == {"r_b"}

    async def test_a_roster_has_what_another_handle_did(self, rig: Rig, harness: StoreHarness) -> None:
        """A list at one gateway shows what was asked at another."""
        other = rig.at(await harness.another())
        key = await other.create()
        before = await marks(rig)
        assert list(before) == [key.run]
        await other.drive()
        assert (await marks(rig, key))[key.run] != before[key.run]
