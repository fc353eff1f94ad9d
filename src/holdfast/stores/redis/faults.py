"""What Redis refuses or does not answer, in the words of the port."""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from holdfast.domain.errors import StoreUnavailable

FULL_REMEDY: Final = (
    "Redis is at its memory limit: raise maxmemory, or lower retention_s or retention_bytes; "
    "stops and ends go through meanwhile"
)
_REMEDIES: Final = (
    ("LAYOUT", "a later Holdfast has moved the keys on: upgrade this one; what it holds goes on there"),
    ("MISCONF", "Redis cannot save to its disk and refuses writes: free space there; its log says more"),
    ("READONLY", "this Redis is a replica: name its master in --store"),
    ("LOADING", "Redis is reading its files after a start: wait"),
    ("BUSY", "a script of somebody else blocks Redis: SCRIPT KILL, or wait"),
    ("NOREPLICAS", "Redis waits for replicas (min-replicas-to-write): start them, or lower it"),
)


def unavailable(name: str, error: Exception) -> StoreUnavailable:
    """What the caller of operation `name` is told."""
    text = f"{name}: {type(error).__name__}: {error}" if str(error) else f"{name}: {type(error).__name__}"
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and "OOM" in str(error)):
        return StoreUnavailable(text, full=True, remedy=FULL_REMEDY)
    return StoreUnavailable(text, remedy=remedy_of(error))


def remedy_of(error: Exception) -> str | None:
    """What to do about it, where that is known."""
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return "give the store's URL a user and password that may use EVALSHA, SCRIPT, streams and pub/sub"
    text = f"{type(error).__name__} {error}".upper()
    for word, remedy in _REMEDIES:
        if word in text:
            return remedy
    if isinstance(error, (OSError, TimeoutError)) or not isinstance(error, ResponseError):
        return "check that Redis runs and can be reached; the operation is repeated"
    return None


__all__ = ["FULL_REMEDY", "RedisError", "remedy_of", "unavailable"]
