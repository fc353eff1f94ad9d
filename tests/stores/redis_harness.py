"""Redis under the conformance suite: a namespace for each test, handles as other processes would have them."""

import asyncio
import itertools
from collections.abc import Iterable

import redis

from holdfast.ports.store import RunStore
from holdfast.stores.redis import RedisStore
from holdfast.stores.redis.scripts import scripts
from tests.redis_server import RedisServer

_names = itertools.count()

# A test's time is a hash beside its data, and passes only when the test says so; production scripts ask Redis.
_CLOCK = scripts("call('HMGET', P .. 'clock', 'seconds', 'micros')")
_START_S = 1_767_225_600
_ADVANCE = """
local micros = redis.call('HGET', KEYS[1], 'micros') + ARGV[1] * 1000
redis.call('HINCRBY', KEYS[1], 'seconds', math.floor(micros / 1000000))
redis.call('HSET', KEYS[1], 'micros', micros % 1000000)
"""


def _lose(topics: Iterable[str]) -> None:
    """Takes the place of whoever publishes wakes."""


class RedisHarness:
    durable = True

    def __init__(self, server: RedisServer, *, real_time: bool = False) -> None:
        name = f"t{next(_names)}"
        self.url = f"{server.url}?namespace={name}"
        self.prefix = f"{{{name}}}:"
        self.client: redis.Redis = server.client()
        self.library = scripts() if real_time else _CLOCK
        self._clock = f"{self.prefix}clock"
        self.client.hset(self._clock, mapping={"seconds": _START_S, "micros": 0})
        self._handles: list[RedisStore] = []

    async def open(self) -> RunStore:
        return await self.another()

    async def another(self) -> RedisStore:
        store = await RedisStore.open(self.url, library=self.library)
        self._handles.append(store)
        return store

    async def reopen(self) -> RunStore:
        await self._close_handles()
        return await self.another()

    async def advance(self, ms: int) -> None:
        self.client.eval(_ADVANCE, 1, self._clock, ms)

    def lose_wakes(self) -> None:
        for store in self._handles:
            store._subscriber._hub.publish = _lose

    async def close(self) -> None:
        await self._close_handles()
        self.client.flushdb()
        self.client.close()

    async def _close_handles(self) -> None:
        handles, self._handles = self._handles, []
        for store in handles:
            async with asyncio.timeout(10):
                await store.close()
