"""Lease renewal for a heartbeat thread, on a connection of its own that waits for nobody else's calls."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
from redis.asyncio.connection import UnixDomainSocketConnection as AsyncUnixConnection
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoScriptError, RedisError

from holdfast.ports.store import Held, Renewal
from holdfast.stores.redis.address import Address
from holdfast.stores.redis.faults import unavailable
from holdfast.stores.redis.rows import reason_of, uid
from holdfast.stores.redis.scripts import Script

_LIMIT_S: Final = 2.0  # below the 2.5 s between two renewals


class RedisHeart:
    """Blocking, and bounded: each read and write within two seconds."""

    def __init__(self, address: Address, script: Script) -> None:
        """It connects at its first renewal, and again after a failure."""
        self._script = script
        self._meta = f"{address.prefix}meta"
        arguments = dict(address.connect)
        kind: type[Any] = Connection  # redis-py does not say what its blocking methods return
        match arguments.pop("connection_class", None):
            case None:
                pass
            case given if issubclass(given, AsyncUnixConnection):
                kind = UnixDomainSocketConnection
            case _:
                kind = SSLConnection
        self._conn = kind(
            socket_timeout=_LIMIT_S, socket_connect_timeout=_LIMIT_S, protocol=2, driver_info=None, **arguments
        )

    def renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        """See the port."""
        arguments = renewal_arguments(worker, held, lease_ms, msgspec.json.encode(facts, enc_hook=str))
        try:
            return renewals(held, self._evaluate(arguments))
        except (RedisError, OSError) as error:
            self.close()
            raise unavailable("renew", error) from error

    def _evaluate(self, arguments: list[bytes | str | int]) -> Any:
        script = self._script
        if self._conn.is_connected and self._conn.can_read():
            self._conn.disconnect()
        self._conn.connect()
        self._conn.send_command("EVALSHA", script.sha, 1, self._meta, *arguments)
        with suppress(NoScriptError):
            return self._conn.read_response()
        self._conn.send_command("EVAL", script.source, 1, self._meta, *arguments)
        return self._conn.read_response()

    def close(self) -> None:
        """See the port."""
        with suppress(RedisError, OSError):
            self._conn.disconnect()


def renewal_arguments(worker: str, held: Sequence[Held], lease_ms: int, facts: bytes) -> list[bytes | str | int]:
    """What renew.lua takes."""
    arguments: list[bytes | str | int] = [worker, lease_ms, facts]
    for each in held:
        arguments += [uid(each.key), each.fence.epoch, each.fence.claim]
    return arguments


def renewals(held: Sequence[Held], reply: list[Any]) -> list[Renewal]:
    """What renew.lua answered, for each in order."""
    return [
        Renewal(each, bool(lost), reason_of(stop), by.decode(), at, bool(inbox))
        for each, (lost, stop, by, at, inbox) in zip(held, reply, strict=True)
    ]
