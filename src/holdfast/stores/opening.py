"""Opens the store that a URL names: the one place that knows every adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from holdfast.ports.store import RunStore, Wake
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite import SqliteStore

_REDIS: Final = ("redis", "rediss", "unix")


class Question(Protocol):
    """What was asked of a worker."""

    @property
    def worker(self) -> str:
        """Whom."""
        ...

    @property
    def text(self) -> bytes:
        """What, in the words of those who ask."""
        ...


class Questions(Protocol):
    """Hints between processes, no records: what nobody takes in time goes by itself."""

    async def ask(self, worker: str, text: bytes, limit_s: float) -> bytes | None:
        """The answer of whoever has `worker`; None if none came in `limit_s` seconds."""
        ...

    def subscribe(self) -> AbstractContextManager[Wake]:
        """Wakes when somebody asks something of some worker."""
        ...

    async def take(self, workers: Sequence[str]) -> Sequence[Question]:
        """What was asked of these workers since the last call."""
        ...

    async def answer(self, question: Any, text: bytes) -> None:
        """Give the answer to whoever asked; `question` is one that `take` returned."""
        ...


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

    @property
    def questions(self) -> Questions | None:
        """Where workers of other processes are asked what only they know; None where there are none."""
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


def elsewhere(url: str) -> bool:
    """Whether `url` names a server, which may be away and come back, and which other processes share."""
    return urlsplit(url).scheme in _REDIS


def shown(url: str) -> str:
    """`url` without a password, for people and log lines."""
    if urlsplit(url).scheme not in _REDIS:
        return url
    from holdfast.stores.redis.address import shown as without_password

    return without_password(url)


__all__ = ["OpenStore", "Question", "Questions", "StoreError", "elsewhere", "open_store", "shown"]
