"""Every version's store is opened by every later one, and goes on; a later version's is refused by an earlier one."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import redis

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import RunStore, Status
from holdfast.stores.errors import StoreError
from holdfast.stores.redis import RedisStore
from holdfast.stores.redis.scripts import LAYOUT, scripts
from holdfast.stores.sqlite import SqliteStore, connect
from holdfast.stores.sqlite.connect import SCHEMA_VERSION
from holdfast.testing.build import HOUR_MS, encode, new_run, text
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness
from tests.stores.released import KEPT, REDIS, SQLITE, dump_redis, load_redis, load_sqlite

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


@asynccontextmanager
async def opened(kept: Path, directory: Path, server: RedisServer) -> AsyncIterator[RunStore]:
    """The store that is kept in this file, as the present version opens it."""
    if kept.suffix == ".sql":
        path = directory / "old.db"
        load_sqlite(kept.read_text(), path)
        store: RunStore = await SqliteStore.open(f"sqlite:///{path}")
        try:
            yield store
        finally:
            await store.close()
        return
    harness = RedisHarness(server, real_time=True)
    load_redis(kept.read_text(), harness.client, harness.prefix)
    try:
        yield await harness.open()
    finally:
        await harness.close()


@pytest.mark.parametrize("kept", sorted(KEPT.iterdir()), ids=lambda path: path.name)
async def test_what_a_version_left_goes_on_with_this_one(kept: Path, tmp_path: Path, server: RedisServer) -> None:
    """Histories, logs, checkpoints, queues, stops, steered inputs and approvals: nothing is lost by an upgrade."""
    async with opened(kept, tmp_path, server) as store:
        runs = {run.spec.input: run for run in await store.list_runs("local")}
        other = {run.spec.input: run for run in await store.list_runs("other")}
        states = {text: run.state for text, run in (runs | other).items()}
        assert states == {
            "first prompt": State.COMPLETED,
            "second prompt": State.FAILED,
            "may I?": State.WAITING,
            "takes long": State.RUNNING,
            "comes after": State.QUEUED,
            "will be stopped": State.RUNNING,
            "is next": State.QUEUED,
        }
        assert len(await store.history("local", "talk")) == 2
        page = await store.read(runs["first prompt"].key, 0)
        assert (page.status, len(page.events), page.state) == (Status.OK, page.head, State.COMPLETED)
        held = runs["takes long"]
        assert [item.input for item in await store.inbox(held.key)] == ["by the way"]

        await store.disown()  # as the first start after an upgrade does: the old worker is gone
        for _ in range(200):
            await store.reap(100, 0)
            stopped = await store.get(runs["will be stopped"].key)
            held_now = await store.get(held.key)
            if stopped.state.terminal and held_now.state is State.QUEUED:
                break
            await asyncio.sleep(0.02)
        assert (stopped.state, stopped.reason) == (State.CANCELLED, Reason.STOPPED)
        assert (await store.resume(runs["may I?"].key, [{"call": "c1", "approve": True}])).status is Status.OK
        claims = {claim.spec.input: claim for claim in await store.claim("w", 10, HOUR_MS)}
        assert set(claims) == {"may I?", "takes long", "is next"}
        assert claims["may I?"].checkpoint == b"parked here"
        assert claims["takes long"].checkpoint == b"half way"
        assert (await store.create(new_run("talk"))).status is Status.OK
        assert await store.delete_session("local", "talk", "test") is Status.OK
        assert (await store.sweep(older_than_ms=1000 * HOUR_MS, bytes_max=2**50)) >= 0
        assert await store.get(RunKey("local", runs["first prompt"].key.run)) is None
        assert "error" not in await store.health()


def test_the_present_version_is_kept() -> None:
    """Whoever changes the schema keeps what the version before it left, and adds a migration."""
    assert (KEPT / SQLITE.format(SCHEMA_VERSION)).exists(), "python -m tests.stores.released writes it"
    assert (KEPT / REDIS.format(LAYOUT)).exists()
    script = (KEPT / SQLITE.format(SCHEMA_VERSION)).read_text()
    present = Path(connect.__file__).with_name("schema.sql").read_text()
    tables = re.findall(r"^CREATE TABLE (\w+)", present, re.MULTILINE)
    assert tables
    with closing(sqlite3.connect(":memory:")) as new, closing(sqlite3.connect(":memory:")) as old:
        new.executescript(present)
        old.executescript(script)
        for table in tables:
            shape = f"PRAGMA table_info({table})"
            assert old.execute(shape).fetchall() == new.execute(shape).fetchall(), (
                f"{table} has changed: raise SCHEMA_VERSION, add from_{SCHEMA_VERSION}.sql, keep the old file"
            )


async def test_a_later_versions_store_is_refused(tmp_path: Path, server: RedisServer) -> None:
    """An earlier version would misread it: it says what to do, and changes nothing."""
    path = tmp_path / "later.db"
    load_sqlite((KEPT / SQLITE.format(SCHEMA_VERSION)).read_text(), path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"schema version {SCHEMA_VERSION + 1}.*upgrade Holdfast"):
        await SqliteStore.open(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert len(path.read_bytes()) == len(before)
    harness = RedisHarness(server)
    try:
        harness.client.hset(f"{harness.prefix}meta", "layout", LAYOUT + 1)
        with pytest.raises(StoreError, match=f"layout {LAYOUT + 1}.*upgrade Holdfast"):
            await RedisStore.open(harness.url)
    finally:
        await harness.close()


@pytest.mark.parametrize("word", [f"{LAYOUT}>{LAYOUT + 1}", str(LAYOUT + 1)])
async def test_a_process_that_has_the_keys_open_while_a_later_version_moves_them_on_is_fenced(
    word: str, server: RedisServer
) -> None:
    """What no later version can add to this one: it writes nothing among keys of another layout, and says why."""
    harness = RedisHarness(server, real_time=True)
    try:
        store = await harness.another()
        await store.create(new_run("before"))
        (claim,) = await store.claim("w", 1, HOUR_MS)
        harness.client.hset(f"{harness.prefix}meta", "layout", word)
        before = dump_redis(harness.client, harness.prefix)
        for name, script in scripts().items():
            with pytest.raises(redis.ResponseError, match=r"^LAYOUT"):
                harness.client.eval(script.source, 1, f"{harness.prefix}meta")
            assert dump_redis(harness.client, harness.prefix) == before, name
        with pytest.raises(StoreUnavailable) as caught:
            await store.append(claim.key, claim.fence, claim.base, encode(claim.key.run, claim.base, [text(0, "x")]))
        assert "upgrade" in str(caught.value.remedy)
        with pytest.raises(StoreUnavailable):
            await asyncio.to_thread(renew_once, store)
        assert f"layout {word}" in (await store.health())["error"]
        with pytest.raises(StoreError, match=f"layout {word}.*upgrade Holdfast"):
            await harness.another()
        harness.client.hset(f"{harness.prefix}meta", "layout", LAYOUT)  # as if it had been taken back
        drafts = encode(claim.key.run, claim.base, [text(0, "x")])
        assert (await store.append(claim.key, claim.fence, claim.base, drafts)).status is Status.OK
    finally:
        await harness.close()


def renew_once(store: RedisStore) -> None:
    heart = store.heart()
    try:
        heart.renew("w", [], HOUR_MS, {})
    finally:
        heart.close()
