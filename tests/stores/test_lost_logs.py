"""A log that is not there any more, without anybody having said so: damage, a replica that was behind, a hand."""

import sqlite3
from pathlib import Path
from typing import Any

from holdfast.domain.ids import RunKey
from holdfast.ports.store import Status
from holdfast.stores.redis import RedisStore
from holdfast.stores.redis.rows import uid
from holdfast.testing.rig import Rig


async def test_a_reader_whose_log_was_lost_is_told_and_not_left_waiting(either: Rig, tmp_path: Path) -> None:
    """A read that cannot continue answers GONE: an empty page would be "nothing yet", for ever."""
    holder = await either.running()
    await holder.say("heard by nobody")
    await lose_events(either.store, holder.key, tmp_path)
    for after in (0, 1, 2):
        assert (await either.store.read(holder.key, after)).status is Status.GONE
    pages = [page async for page in either.store.tail(holder.key, 0)]
    assert [page.status for page in pages] == [Status.GONE]


async def lose_events(store: Any, run: RunKey, directory: Path) -> None:
    """Take the events away under the store."""
    if isinstance(store, RedisStore):
        key = f"{store._link.address.prefix}log:{uid(run)}"
        assert await store._link.command("DEL", key) == 1
        return
    with sqlite3.connect(directory / "holdfast.db", timeout=5) as conn:
        assert conn.execute("DELETE FROM events").rowcount == 3
    conn.close()
