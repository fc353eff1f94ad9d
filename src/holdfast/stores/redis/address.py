"""Where a Redis store is: `redis://[user:password@]host[:port]/db[?namespace=name]`, `rediss://`, or `unix:///socket`."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import parse_url

from holdfast.stores.errors import StoreError

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OURS: Final = (
    "socket_timeout",
    "socket_connect_timeout",
    "max_connections",
    "timeout",
    "protocol",
    "decode_responses",
)


class Address(NamedTuple):
    """How to connect, and the beginning of every key."""

    shown: str  # without a password
    connect: dict[str, Any]
    prefix: str


def address(url: str) -> Address:
    """Read a store's URL.

    Raises:
        StoreError: It names no Redis.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    namespace = query.pop("namespace", ["holdfast"])[0]
    if not _NAMESPACE.fullmatch(namespace):
        raise StoreError(
            f"cannot open {shown(url)}: namespace {namespace!r} is not 1 to 64 of [A-Za-z0-9._-]; name another"
        )
    try:
        found = parse_url(urlunsplit(parts._replace(query=urlencode(query, doseq=True))))
    except (ValueError, TypeError) as error:
        raise StoreError(f"cannot open {shown(url)}: {error}; use redis://host:port/db") from error
    connect = {name: value for name, value in found.items() if name not in _OURS}
    db = connect.get("db", 0)
    # Channels of pub/sub are the same in every db: its number is part of the prefix, so that no wake goes astray.
    return Address(shown(url), connect, f"{{{namespace}{f'.{db}' if db else ''}}}:")


def shown(url: str) -> str:
    """The URL without its password, for people and log lines."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
