"""What each released version left in its store, kept as text: `python -m tests.stores.released` writes the present one.

A version that was released is never written again: later versions open it, and go on with all that is in it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from msgspec.structs import replace

from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import RunStore, Status
from holdfast.stores.redis.scripts import LAYOUT
from holdfast.stores.sqlite.connect import SCHEMA_VERSION
from holdfast.testing.build import CALM, text
from holdfast.testing.rig import Rig
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness
from tests.stores.sqlite_harness import SqliteHarness

KEPT = Path(__file__).with_name("released")
SQLITE, REDIS = "sqlite_{}.sql", "redis_{}.json"


async def fill(store: RunStore, rig: Rig) -> None:
    """A run in every state, with a history, a checkpoint, a steered input and a queue."""
    done = await rig.running("talk", text="first prompt")
    await done.say("an answer")
    await done.finish()
    failed = await rig.running("talk", text="second prompt")
    await failed.finish(State.FAILED, Reason.AGENT_ERROR)
    parked = await rig.running("asks", text="may I?")
    await parked.append(text(0, "asking"), checkpoint=b"a checkpoint")
    assert (await parked.park(b"parked here")).status is Status.OK
    held = await rig.running("works", text="takes long", limits=replace(CALM, attempts_max=3))
    await held.append(text(0, "half of it"), checkpoint=b"half way")
    await store.steer(held.key, "by the way")
    await rig.create("works", text="comes after", policy=Policy.ENQUEUE)
    stopping = await rig.running("stops", text="will be stopped")
    await store.request_stop(stopping.key, Reason.STOPPED, "client")
    await rig.create("waits", tenant="other", text="is next")


def dump_sqlite(path: Path) -> str:
    """The database as statements, its version included."""
    with closing(sqlite3.connect(path)) as conn:
        version = conn.execute("PRAGMA user_version").fetchone()[0]
        return "\n".join([*conn.iterdump(), f"PRAGMA user_version = {version};", ""])


def load_sqlite(script: str, path: Path) -> None:
    """That database in a file."""
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript(script)


def _text(value: bytes) -> str:
    return base64.b85encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b85decode(value)


def dump_redis(client: redis.Redis, prefix: str) -> str:
    """Every key of a namespace with its type and content; the prefix left out. No key of ours has another type."""
    found: dict[str, Any] = {}
    for key in sorted(client.scan_iter(f"{prefix}*")):
        kind, name = client.type(key).decode(), key.decode().removeprefix(prefix)
        if kind == "hash":
            content: Any = [[_text(k), _text(v)] for k, v in sorted(client.hgetall(key).items())]
        elif kind == "zset":
            content = [[_text(member), score] for member, score in client.zrange(key, 0, -1, withscores=True)]
        elif kind == "set":
            content = [_text(member) for member in sorted(client.smembers(key))]
        elif kind == "list":
            content = [_text(each) for each in client.lrange(key, 0, -1)]
        else:
            assert kind == "stream", (key, kind)
            content = [[i.decode(), [[_text(k), _text(v)] for k, v in d.items()]] for i, d in client.xrange(key)]
        found[name] = [kind, content]
    lines = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in found if name != "clock"]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_redis(script: str, client: redis.Redis, prefix: str) -> None:
    """Those keys under another prefix."""
    for name, (kind, content) in json.loads(script).items():
        key = prefix + name
        if kind == "hash":
            client.hset(key, mapping={_bytes(k): _bytes(v) for k, v in content})
        elif kind == "zset":
            client.zadd(key, {_bytes(member): score for member, score in content})
        elif kind == "set":
            client.sadd(key, *map(_bytes, content))
        elif kind == "list":
            client.rpush(key, *map(_bytes, content))
        else:
            for entry, fields in content:
                client.xadd(key, {_bytes(k): _bytes(v) for k, v in fields}, id=entry)


async def write() -> None:
    """The present version, into `released/`."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        harness = SqliteHarness(Path(place))
        store = await harness.open()
        await fill(store, Rig(store, harness.advance))
        await harness.close()
        (KEPT / SQLITE.format(SCHEMA_VERSION)).write_text(dump_sqlite(Path(place) / "holdfast.db"))
        server = RedisServer(Path(place))
        server.start()
        try:
            there = RedisHarness(server, real_time=True)
            await fill(await there.open(), Rig(await there.another(), there.advance))
            (KEPT / REDIS.format(LAYOUT)).write_text(dump_redis(there.client, there.prefix))
            await there.close()
        finally:
            server.close()


if __name__ == "__main__":
    asyncio.run(write())
