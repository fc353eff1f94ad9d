"""DELETE and retention forget for good: not a byte of what was said is left, in no row, key, page or WAL."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.domain.events import EventType
from holdfast.ports.store import Status
from holdfast.stores.sqlite import sweeping
from holdfast.stores.sqlite.tx import Tx
from holdfast.testing.build import HOUR_MS, text, tool_called
from holdfast.testing.rig import Holder, Rig
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness
from tests.stores.sqlite_harness import SqliteHarness

pytestmark = pytest.mark.timeout(60)
MARK = "Xylophon-4711-Geheimnis"
BYTES_MAX = 2**50


def in_sqlite(path: Path) -> int:
    """How often it is in the files of a database."""
    return sum(each.read_bytes().count(MARK.encode()) for each in path.parent.glob(f"{path.name}*"))


def in_redis(server: RedisServer, prefix: str) -> list[str]:
    """The keys that still hold it."""
    found = []
    with closing(server.client()) as client:
        for key in client.scan_iter(f"{prefix}*"):
            kind = client.type(key).decode()
            read: dict[str, Callable[[], object]] = {
                "hash": lambda key=key: client.hgetall(key),
                "stream": lambda key=key: client.xrange(key),
                "set": lambda key=key: client.smembers(key),
                "zset": lambda key=key: client.zrange(key, 0, -1),
                "list": lambda key=key: client.lrange(key, 0, -1),
                "string": lambda key=key: client.get(key),
            }
            if MARK in repr(read[kind]()):
                found.append(key.decode())
    return found


async def say_everything(rig: Rig) -> None:
    """It is in a prompt, a text, arguments, checkpoints large and small, a steered input, a decision and an answer."""
    holder: Holder = await rig.running("s", text=f"prompt {MARK}")
    await holder.append(text(0, f"text {MARK}"), checkpoint=f"small {MARK}".encode())
    await rig.store.steer(holder.key, f"steer {MARK}")
    await holder.append(tool_called("c1"), checkpoint=f"{MARK} ".encode() * 3000)
    await holder.append((EventType.TOOL_PROGRESS, {"call": "c1", "text": MARK}), checkpoint=b"none", consumed=1)
    assert (await holder.park(f"parked {MARK}".encode())).status is Status.OK
    await rig.store.resume(holder.key, [{"call": "c1", "approve": True, "message": MARK}])
    (again,) = await rig.claim()
    await again.start()
    await again.finish()
    queued = await rig.running("s", text=f"another {MARK}")
    await queued.finish()


async def forget(rig: Rig, how: str) -> None:
    if how == "DELETE":
        assert await rig.store.delete_session("local", "s", "test") is Status.OK
        await rig.sweep(older_than_ms=1000 * HOUR_MS, bytes_max=BYTES_MAX)
    else:
        await rig.leap(2 * HOUR_MS)
        await rig.sweep(older_than_ms=HOUR_MS, bytes_max=BYTES_MAX)
        assert await rig.store.delete_session("local", "s", "test") is Status.OK  # the session is its owner's to forget


@pytest.mark.parametrize("how", ["DELETE", "retention"])
async def test_sqlite_has_not_a_byte_left(tmp_path: Path, how: str) -> None:
    """Free pages and the WAL hold what was deleted, unless somebody sees to it."""
    harness = SqliteHarness(tmp_path)
    store = await harness.open()
    try:
        path = next(tmp_path.glob("*.db"))
        rig = Rig(store, harness.advance)
        await say_everything(rig)
        assert in_sqlite(path) > 5
        await forget(rig, how)
        until = time.monotonic() + 20
        while (left := in_sqlite(path)) and time.monotonic() < until:
            await asyncio.sleep(0.1)
        assert not left
    finally:
        await harness.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize("how", ["DELETE", "retention"])
async def test_redis_has_no_key_left(server: RedisServer, how: str) -> None:
    """Its memory; what its own append-only file still holds is gone with the next rewrite."""
    harness = RedisHarness(server)
    store = await harness.open()
    try:
        rig = Rig(store, harness.advance)
        await say_everything(rig)
        assert in_redis(server, harness.prefix)
        await forget(rig, how)
        assert not in_redis(server, harness.prefix)
    finally:
        await harness.close()


async def test_sqlite_looks_once_for_all_that_it_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look goes through every row that is kept: one for each run took 3.6 s of the writer, with 100,000 rows."""
    harness, looks, found = SqliteHarness(tmp_path), 0, sweeping.to_delete

    def counted(tx: Tx, limit: int) -> list[int]:
        nonlocal looks
        looks += 1
        return found(tx, limit)

    monkeypatch.setattr(sweeping, "to_delete", counted)
    store = await harness.open()
    try:
        rig = Rig(store, harness.advance)
        keys = []
        for n in range(30):
            holder = await rig.running(f"s{n}")
            await holder.finish()
            keys.append(holder.key)
        await rig.leap(2 * HOUR_MS)
        assert await store.sweep(older_than_ms=HOUR_MS, bytes_max=BYTES_MAX) == 30
        assert looks == 1
        with closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as conn:
            assert conn.execute("SELECT count(*) FROM events").fetchone() == (0,)
            assert conn.execute("SELECT count(*) FROM runs WHERE gone > 0 AND head = 0").fetchone() == (30,)
    finally:
        await harness.close()


async def test_sqlite_deletes_a_long_log_in_small_steps_to_its_end(tmp_path: Path) -> None:
    """A transaction for 2,500 events at once would hold up every other writer; half of them left would never go."""
    harness = SqliteHarness(tmp_path)
    store = await harness.open()
    try:
        rig = Rig(store, harness.advance)
        holder = await rig.running("s")
        for _ in range(25):
            await holder.append(*(text(0, "x") for _ in range(100)))
        await holder.finish()
        await rig.leap(2 * HOUR_MS)
        assert await store.sweep(older_than_ms=HOUR_MS, bytes_max=BYTES_MAX) == 1
        with closing(sqlite3.connect(next(tmp_path.glob("*.db")))) as conn:
            assert conn.execute("SELECT count(*) FROM events").fetchone() == (0,)
    finally:
        await harness.close()
