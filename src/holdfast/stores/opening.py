"""Opens the store that a URL names: the one place that knows every adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import urlsplit

from holdfast.ports.store import RunStore
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite import SqliteStore

_REDIS: Final = ("redis", "rediss", "unix")


class OpenStore(RunStore, Protocol):
    """A store as the process that opened it has it."""

    @property
    def lock_fd(self) -> int | None:
        """The owner's lock, for a worker process to inherit; None where any number of processes may work."""
        ...

    @property
    def durability(self) -> str:
        """What survives what, in a few words."""
        ...

    def held_up_s(self) -> float:
        """How long a write of this process has waited for another process."""
        ...

    def broken(self) -> str:
        """What has ended that only a new process can begin again, or ""."""
        ...


async def open_store(url: str, *, own: bool = False, say: Callable[..., None] | None = None) -> OpenStore:
    """Open the store at `url`.

    Args:
        url: `sqlite:///file`, `sqlite://:memory:`, or `redis://host:port/db`.
        own: Be the one process whose worker serves it, where a store has one only (SQLite).
        say: Takes what goes wrong in the background, as `Log.write` does.

    Raises:
        StoreError: It cannot be used; says why and what to do.
    """
    if urlsplit(url).scheme not in _REDIS:
        return await SqliteStore.open(url, own=own)
    from holdfast.stores.redis import RedisStore  # with it comes redis-py

    return await (RedisStore.open(url) if say is None else RedisStore.open(url, say=say))


def shown(url: str) -> str:
    """`url` without a password, for people and log lines."""
    if urlsplit(url).scheme not in _REDIS:
        return url
    from holdfast.stores.redis.address import shown as without_password

    return without_password(url)


__all__ = ["OpenStore", "StoreError", "open_store", "shown"]
