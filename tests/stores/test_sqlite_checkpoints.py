"""The WAL is bounded whoever reads and writes, and shrinks when nobody does."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.stores.sqlite import checkpoints
from holdfast.stores.sqlite.checkpoints import frames_in
from holdfast.testing.build import text
from tests.stores.test_sqlite_processes import line, opened, other

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]

SECONDS = 3.0
WAL_BYTES_MAX = 16_000_000  # measured 5 to 8 MB


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'holdfast.db'}"


async def test_the_salts_say_how_much_of_the_wal_is_in_use(tmp_path: Path) -> None:
    """What is left of an earlier round in the file is not counted, else an old long WAL would be copied for ever."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("CREATE TABLE t (x)")
        for rounds in range(3):
            for _ in range(40):
                conn.execute("INSERT INTO t VALUES (zeroblob(?))", (3000 + 40 * rounds,))
            _, there, _ = conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert frames_in(f"{path}-wal") == there
        conn.execute("INSERT INTO t VALUES (1)")
        assert 1 <= frames_in(f"{path}-wal") < 5
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert frames_in(f"{path}-wal") == 0
    assert frames_in(f"{path}-absent") == 0


async def test_the_wal_is_bounded_under_constant_writing_and_reading(url: str, tmp_path: Path) -> None:
    """A WAL begins anew only when a checkpoint has caught up: it must, beside two processes that never pause."""
    wal = tmp_path / "holdfast.db-wal"
    most = 0
    async with opened(url) as rig, other("write", url, 10) as child:
        await line(child)
        drain = asyncio.create_task(child.stdout.read())
        holders = [await rig.running(f"here{n}") for n in range(10)]
        for holder in holders:
            for _ in range(5):
                await holder.append(text(0, "x" * 50_000))

        until = time.monotonic() + SECONDS

        async def write(holder) -> None:
            while time.monotonic() < until:
                await holder.append(text(0, "x" * 2_000))

        async def read(holder) -> None:
            after = 0
            while time.monotonic() < until:
                page = await rig.store.read(holder.key, after)
                after = page.head if after >= page.head else after + len(page.events)
                after = 0 if after > 400 else after

        async def watch() -> None:
            nonlocal most
            while time.monotonic() < until:
                most = max(most, wal.stat().st_size)
                await asyncio.sleep(0.01)

        await asyncio.gather(*map(write, holders), *map(read, holders[:4]), watch())
        child.kill()
        await drain
        written = sum(h.head for h in holders)
    print(f"WAL at most {most / 1e6:.1f} MB beside {written * 2 / 1000:.0f} MB written here")  # noqa: T201
    assert most < WAL_BYTES_MAX


async def test_the_wal_is_emptied_when_nobody_writes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that idles leaves its data in one file, not in a log of it."""
    monkeypatch.setattr(checkpoints, "_IDLE_S", 0.2)
    wal = tmp_path / "holdfast.db-wal"
    async with opened(url) as rig:
        holder = await rig.running()
        for _ in range(40):
            await holder.append(text(0, "x" * 50_000))
        assert wal.stat().st_size > 1_000_000
        async with asyncio.timeout(5):
            while wal.stat().st_size > 100_000:
                await rig.reap()  # as every server does each second
                await asyncio.sleep(0.05)
        assert (await rig.store.read(holder.key, 0)).head == holder.head
