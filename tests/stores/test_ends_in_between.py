"""A run that goes on between two steps of whoever ends it: what was read before is not what is written."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from holdfast.domain.runs import Reason
from holdfast.ports.store import Status
from holdfast.stores.redis import RedisStore
from holdfast.stores.sqlite import SqliteStore, reaping
from holdfast.testing.build import CALM
from holdfast.testing.rig import GRACE_MS, Rig

SHORT = replace(CALM, deadline_ms=1_000)


def between(store: Any, monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    """Do `work` once, after the run was read and before its end is written."""
    loop = asyncio.get_running_loop()
    left = [work]
    if isinstance(store, SqliteStore):
        found = reaping.due

        def due(*arguments: Any) -> Any:  # on a reader's thread
            answer = found(*arguments)
            if left:
                asyncio.run_coroutine_threadsafe(left.pop()(), loop).result(5)
            return answer

        monkeypatch.setattr(reaping, "due", due)
        return
    assert isinstance(store, RedisStore)
    fold = store._ends._fold

    async def folded(*arguments: Any) -> None:
        await fold(*arguments)
        if left:
            await left.pop()()

    monkeypatch.setattr(store._ends, "_fold", folded)


async def test_what_a_run_said_meanwhile_is_in_its_end(either: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reaper composes from the log; a delta that comes while it does must not be missing from the partial."""
    holder = await either.running(limits=SHORT)
    await holder.say("read ")
    await either.pass_time(1_000 + GRACE_MS - 100)
    await either.leap(200)
    between(either.store, monkeypatch, lambda: holder.say("and said since"))
    done = [*await either.reap(), *await either.reap()]
    assert [each.reason for each in done] == [Reason.DEADLINE]
    last = (await either.log(holder.key))[-1]  # which has looked at its numbers, too
    assert last["partial"] == "read and said since"
    (entry,) = await either.store.history("local", "s")
    assert entry.messages[-1].text == "read and said since"


async def test_an_input_that_came_meanwhile_is_not_lost(either: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A steered input that nobody read becomes a run, also where it came in the very moment of the end."""
    holder = await either.running(limits=SHORT)
    await either.pass_time(1_000 + GRACE_MS - 100)
    await either.leap(200)
    between(either.store, monkeypatch, lambda: either.store.steer(holder.key, "one more thing"))
    _ = [*await either.reap(), *await either.reap()]
    follow = [record for record in await either.runs() if record.key != holder.key]
    assert [record.spec.input for record in follow] == ["one more thing"]


async def test_a_claim_of_the_meantime_is_taken_from_its_worker(either: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was handed back and claimed anew while its end was composed: the end fences the new claim."""
    holder = await either.running(limits=SHORT)
    await either.pass_time(1_000 + GRACE_MS - 100)
    await either.leap(200)
    claims = []

    async def again() -> None:
        await holder.release()
        claims.extend(await either.claim())

    between(either.store, monkeypatch, again)
    for _ in range(3):
        await either.reap()
    assert (await either.record(holder.key)).state.terminal
    await either.log(holder.key)
    for claim in claims:
        assert (await claim.say("too late")).status is Status.FENCED
