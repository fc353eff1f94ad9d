"""The store on Redis 7.0 or newer, for any number of gateways and workers. See `holdfast.stores.redis.store`."""

from holdfast.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
