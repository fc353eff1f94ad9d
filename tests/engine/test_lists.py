"""A list that is followed: whatever fails on the way, it comes to show what there is."""

from typing import Any

import pytest

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import LOCAL_TENANT
from holdfast.domain.runs import State
from holdfast.engine import lists
from holdfast.engine.lists import ListWatch
from holdfast.ports.store import RunRecord
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing.rig import Rig, timeless


class Failing:
    """A store whose n-th call has no answer."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.left = -1

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            answer = await method(*args, **kwargs)
            if self.left == 0:
                raise StoreUnavailable("no answer")
            return answer

        return call


async def never(ms: int) -> None:
    raise AssertionError(f"no time passes here ({ms} ms)")


async def kept(watch: ListWatch, shown: dict[str, RunRecord]) -> None:
    """Look, and keep the list as its readers do."""
    for change in await watch.look():
        if change.record is None:
            del shown[change.run]
        else:
            shown[change.run] = change.record


@pytest.mark.parametrize("n", range(1, 16))
async def test_a_look_that_fails_anywhere_loses_nothing(n: int) -> None:
    """The n-th call of the store fails, for every n: the next look makes up for it."""
    store = await SqliteStore.open("sqlite://:memory:", own=True)
    try:
        rig, failing = Rig(store, never), Failing(store)
        watch, shown = ListWatch(failing, LOCAL_TENANT), dict[str, RunRecord]()  # type: ignore[arg-type]
        first = await rig.create("a")
        failing.left = n
        for step in range(4):
            try:
                await kept(watch, shown)
            except StoreUnavailable:
                await kept(watch, shown)
            if step == 0:
                holder = await rig.begin(first)
                await rig.create("b")
            elif step == 1:
                await holder.finish(State.FAILED)
                await rig.drive()
            elif step == 2:
                assert await store.delete_session(LOCAL_TENANT, "b", "test")
        assert {run: timeless(record) for run, record in shown.items()} == {
            record.key.run: timeless(record) for record in await rig.runs()
        }
    finally:
        await store.close()


async def test_only_so_many_ended_runs_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: what a list keeps in mind does not grow with the runs that there were."""
    monkeypatch.setattr(lists, "ENDED_MAX", 5)
    store = await SqliteStore.open("sqlite://:memory:", own=True)
    try:
        rig, watch, shown = Rig(store, never), ListWatch(store, LOCAL_TENANT), dict[str, RunRecord]()
        for n in range(30):
            await rig.create(f"s{n}")
            await rig.drive()
            await kept(watch, shown)
        assert len(watch._seen) == 5
        assert all(record.state is State.COMPLETED for record in shown.values())
        assert len(shown) == 30
    finally:
        await store.close()
