"""Redis under the conformance suite: a namespace for each test, handles as other processes would have them."""

import asyncio
import itertools
from collections.abc import Iterable

import redis

from holdfast.ports.store import RunStore
from holdfast.stores.redis import RedisStore
from tests.redis_server import RedisServer

_names = itertools.count()

# Time is Redis' own. What a test wants to have passed is taken from the clock that timers run on (`skipped`), and
# from every wall time that the store holds.
_SHIFT = """
local P, ms = ARGV[1], tonumber(ARGV[2])
redis.call('HINCRBY', P .. 'meta', 'skipped', -ms)
local function scores(key)
  local members = redis.call('ZRANGE', key, 0, -1)
  for _, member in ipairs(members) do redis.call('ZINCRBY', key, -ms, member) end
end
for _, key in ipairs({'ended', 'forgotten', 'gone', 'deleted_sessions', 'queue'}) do scores(P .. key) end
for _, key in ipairs(redis.call('KEYS', P .. 'sessions:*')) do scores(key) end
for _, kind in ipairs({'run', 'session'}) do
  for _, key in ipairs(redis.call('KEYS', P .. kind .. ':*')) do
    for _, field in ipairs({'created_at', 'updated_at', 'ready_at', 'started_at', 'ended_at', 'stop_at', 'gone'}) do
      if redis.call('HEXISTS', key, field) == 1 then redis.call('HINCRBY', key, field, -ms) end
    end
  end
end
"""


def _lose(topics: Iterable[str]) -> None:
    """Takes the place of whoever publishes wakes."""


class RedisHarness:
    durable = True

    def __init__(self, server: RedisServer) -> None:
        name = f"t{next(_names)}"
        self.url = f"{server.url}?namespace={name}"
        self.prefix = f"{{{name}}}:"
        self.client: redis.Redis = server.client()
        self._handles: list[RedisStore] = []

    async def open(self) -> RunStore:
        return await self.another()

    async def another(self) -> RedisStore:
        store = await RedisStore.open(self.url)
        self._handles.append(store)
        return store

    async def reopen(self) -> RunStore:
        await self._close_handles()
        return await self.another()

    async def advance(self, ms: int) -> None:
        self.client.eval(_SHIFT, 0, self.prefix, ms)

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
