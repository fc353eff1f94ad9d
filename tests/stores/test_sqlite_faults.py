"""What goes wrong beneath SQLite is said in words, costs nobody else anything, and hangs nobody."""

import asyncio
import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.store import Status
from holdfast.stores.sqlite import SqliteStore, StoreError
from holdfast.testing.build import new_run
from tests.stores.test_sqlite_processes import FROZEN, line, opened, process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(40)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'holdfast.db'}"


async def test_operations_that_raise_fail_alone_under_concurrency(url: str) -> None:
    """[READ] one raising operation must not fail its group, nor kill the thread: not one of many at once either."""
    seed = random.randrange(2**32)
    print(f"seed={seed}")  # noqa: T201 - repeats a failure
    chance = random.Random(seed)
    async with opened(url) as rig:
        writer = rig.store._writer

        async def one(n: int) -> bool:
            raises = chance.random() < 0.1

            def operation(tx: Any) -> int:
                tx.run("INSERT INTO meta (key, value) VALUES (?, 1)", f"key {n}")
                if raises:
                    raise LookupError(n)
                return n

            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.05)
            if not raises:
                assert await writer.do("one", operation) == n
                return True
            with pytest.raises(LookupError, match=f"^{n}$"):
                await writer.do("one", operation)
            return False

        async with asyncio.timeout(20):
            answers = await asyncio.gather(*map(one, range(600)))
        assert rig.store.broken() == ""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as conn:
        found = {key for (key,) in conn.execute("SELECT key FROM meta WHERE key LIKE 'key %'")}
    assert found == {f"key {n}" for n, done in enumerate(answers) if done}


class Failing:
    """A connection whose next COMMIT fails as it does when the disk does."""

    def __init__(self, conn: sqlite3.Connection, code: int) -> None:
        self.conn = conn
        self._code = code

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            raise error
        return self.conn.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_PROTOCOL])
async def test_a_commit_that_fails_is_unknown_and_the_next_one_works(url: str, code: int) -> None:
    """The outcome is unknown, so callers repeat: a connection that stays inside its transaction would fail them all."""
    async with opened(url) as rig:
        writer = rig.store._writer
        key = await rig.create()
        writer._conn = Failing(writer._conn, code)
        async with asyncio.timeout(10):
            errors = await asyncio.gather(*(rig.create(f"s{n}") for n in range(5)), return_exceptions=True)
            failed = [e for e in errors if isinstance(e, BaseException)]
            assert failed
            assert all(isinstance(e, StoreUnavailable) and not e.full for e in failed)
            assert await rig.create("after")
        assert isinstance(writer._conn, sqlite3.Connection)
        assert await rig.store.get(key)


async def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as refused:
        async with asyncio.timeout(10):
            await SqliteStore.open(f"sqlite:///{path}", own=True)
    assert str(path) in str(refused.value)
    return str(refused.value)


async def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    """A typing mistake in --store must not cost somebody's letter."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada, " * 1000)
    assert "is no SQLite database" in await refusal(path)
    assert path.read_text() == "Dear Ada, " * 1000


async def test_a_corrupt_database_is_refused_with_a_remedy(tmp_path: Path, url: str) -> None:
    """Said at the start, with what can be done, not by the first run that meets it."""
    async with opened(url) as rig:
        await rig.create()
    path = tmp_path / "holdfast.db"
    raw = bytearray(path.read_bytes())
    raw[100:4096] = b"\xff" * 3996  # the header says SQLite, the schema is noise
    path.write_bytes(raw)
    text = await refusal(path)
    assert "is corrupt" in text
    assert "backup" in text


async def test_corrupt_pages_fail_operations_and_nothing_else(tmp_path: Path, url: str) -> None:
    """Whatever page is noise: an answer or StoreUnavailable, in bounded time, and a health that can be asked."""
    async with opened(url) as rig:
        keys = [await rig.create(f"s{n}", text="x" * 3000) for n in range(40)]
    path = tmp_path / "holdfast.db"
    with closing(sqlite3.connect(path)) as conn:
        roots = [
            page for (page,) in conn.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('events', 'specs')")
        ]
    raw = bytearray(path.read_bytes())
    for page in roots:
        raw[(page - 1) * 4096 : (page - 1) * 4096 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    store = await SqliteStore.open(url)
    async with asyncio.timeout(15):
        failed = 0
        for key in keys:
            for work in (store.get(key), store.read(key, 0), store.create(new_run(key.run))):
                try:
                    await work
                except StoreUnavailable:
                    failed += 1
        assert failed
        assert (await store.health())["kind"] == "sqlite"
        assert store.broken() == ""
        await store.close()


async def test_a_newer_schema_is_refused_and_named(tmp_path: Path) -> None:
    """After a downgrade: which version wrote it, which reads it."""
    path = tmp_path / "holdfast.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 4711")
    text = await refusal(path)
    assert "4711" in text
    assert "upgrade" in text


async def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """A directory in place of the file, a file in place of the directory."""
    (tmp_path / "file").write_text("")
    assert "unable to open" in await refusal(tmp_path)
    assert "cannot make the directory" in await refusal(tmp_path / "file" / "holdfast.db")


REFUSED = (
    "import asyncio, os, sys; from holdfast.stores.sqlite import SqliteStore, StoreError\n"
    "from holdfast.ports.clock import SystemClock\n"
    "clock = SystemClock()\n"  # what is read late, before it may not be read any more
    "if os.geteuid() == 0: os.seteuid(65534)\n"
    "try: asyncio.run(SqliteStore.open(sys.argv[1], clock=clock)); print('opened')\n"
    "except StoreError as error: print(error)\n"
)


async def test_permissions_that_are_missing_are_named(tmp_path: Path, url: str) -> None:
    """A directory that may not be written, a database that may not: told apart from a wrong path."""
    async with opened(url) as rig:
        await rig.create()
    readable = [tmp_path, *(p for p in tmp_path.parents if p.owner() == tmp_path.owner() and p != Path("/"))]
    before = {p: p.stat().st_mode for p in readable if p.is_relative_to(tmp_path.parents[1])}
    try:
        for p in before:
            p.chmod(0o555)
        (tmp_path / "holdfast.db").chmod(0o444)
        for where in (url, f"sqlite:///{tmp_path / 'new.db'}", f"sqlite:///{tmp_path / 'below' / 'new.db'}"):
            async with process("-c", REFUSED, where) as child:
                said = await line(child)
                assert "permissions" in said, said
    finally:
        for p, mode in before.items():
            p.chmod(mode)


async def test_readers_that_stand_still_stop_no_write_and_no_close(url: str) -> None:
    """Reading and writing share nothing that can be waited for."""
    release = threading.Event()
    async with opened(url) as rig:
        holder = await rig.running()
        stuck = [asyncio.create_task(rig.store._readers.do("stuck", lambda _: release.wait(20))) for _ in range(5)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(2):
            for _ in range(50):
                assert (await holder.say("x")).status is Status.OK
        began = time.monotonic()
    assert time.monotonic() - began < 4.0
    release.set()
    await asyncio.wait(stuck, timeout=5)
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_close_is_bounded_while_another_process_is_frozen_in_its_transaction(url: str, tmp_path: Path) -> None:
    """A gateway that must end does not wait for a worker that cannot: what it had to write fails, and says so."""
    store = await SqliteStore.open(url)
    async with process("-c", FROZEN, tmp_path / "holdfast.db") as child:
        assert await line(child) == "frozen"
        os.kill(child.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(store.create(new_run(f"s{n}"))) for n in range(3)]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await store.close()
        took = time.monotonic() - began
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 2)
    assert took < 10.0
    assert all(isinstance(a, StoreUnavailable) for a in answers)


async def test_what_is_acknowledged_is_on_the_disk(url: str) -> None:
    """No test can cut the power; that SQLite is told to sync at every commit, as `serve` says, can be seen."""
    async with opened(url) as rig:
        found = await rig.store._writer.do("look", lambda tx: tx.one("PRAGMA synchronous")[0])
        kind = await rig.store._writer.do("look", lambda tx: tx.one("PRAGMA journal_mode")[0])
        assert (found, kind) == (2, "wal")  # FULL
        assert rig.store.durability == "fsync at every commit"
