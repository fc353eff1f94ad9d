"""Connections to Redis, and the one way in which a script is called.

A pool of our own, of redis-py's connections: its blocking pool may lose one where a caller is cancelled while it gives
it back. Nothing is repeated here: an operation of unknown outcome is the caller's to repeat, because only the caller
knows that it is the same one. The whole of a call, waiting for a connection included, has one limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import NoScriptError, RedisError

from holdfast.domain.errors import StoreUnavailable
from holdfast.stores.redis.address import Address
from holdfast.stores.redis.faults import unavailable
from holdfast.stores.redis.scripts import Script

T = TypeVar("T")

CALL_S: Final = 5.0
CONNECT_S: Final = 2.0
_CONNECTIONS: Final = 16
_CLOSE_S: Final = 2.0

Argument = bytes | str | int


def connection(address: Address) -> AbstractConnection:
    """A connection that is not connected yet; without time limits of its own, which would cost a task a command."""
    arguments = dict(address.connect)
    kind = arguments.pop("connection_class", Connection)
    made: AbstractConnection = kind(
        socket_timeout=None, socket_connect_timeout=CONNECT_S, protocol=2, driver_info=None, **arguments
    )
    return made


class Link:
    """A bounded pool of connections on one loop; callable from other loops, too."""

    def __init__(self, address: Address, library: Mapping[str, Script]) -> None:
        """Nothing is connected yet; the running loop is the one that all connections belong to."""
        self.address = address
        self.library = library
        self._meta = f"{address.prefix}meta"
        self.loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_CONNECTIONS)
        self._idle: list[AbstractConnection] = []
        self._out = 0
        self._closed = False

    async def call(self, name: str, *arguments: Argument) -> Any:
        """Run the script `name` and return its reply.

        Raises:
            StoreUnavailable: No reply came, or Redis refuses.
        """
        return await self.on_loop(self._call(self.library[name], arguments))

    def is_here(self) -> bool:
        """Whether the running loop is the one that the connections belong to."""
        return asyncio.get_running_loop() is self.loop

    async def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry out `work` on the loop that the connections belong to."""
        if self.is_here():
            return await work
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:
            work.close()
            raise StoreUnavailable("the store is closed") from error
        return await asyncio.wrap_future(future)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[AbstractConnection]:
        """A connection for one exchange, within `CALL_S` seconds."""
        async with asyncio.timeout(CALL_S), self._room:
            if self._closed:
                raise ConnectionError("the store is closed")
            conn = self._idle.pop() if self._idle else connection(self.address)
            self._out += 1
            try:
                if conn.is_connected and await conn.can_read():  # Redis closed it, or an answer came too late
                    await conn.disconnect(nowait=True)
                if not conn.is_connected:
                    await conn.connect()
                yield conn
            except BaseException as error:
                if not isinstance(error, RedisError) or not conn.is_connected:
                    await conn.disconnect(nowait=True)
                raise
            finally:
                self._out -= 1
                await self._give_back(conn)

    async def _give_back(self, conn: AbstractConnection) -> None:
        if self._closed:
            await conn.disconnect(nowait=True)
        else:
            self._idle.append(conn)

    async def _call(self, script: Script, arguments: tuple[Argument, ...]) -> Any:
        try:
            async with self.connected() as conn:
                return await self.evaluate(conn, script, arguments)
        except (RedisError, OSError) as error:
            raise unavailable(script.name, error) from error

    async def evaluate(self, conn: AbstractConnection, script: Script, arguments: tuple[Argument, ...]) -> Any:
        """Run `script` on `conn`, by its hash; with its text where this Redis does not have it (any more)."""
        await conn.send_command("EVALSHA", script.sha, 1, self._meta, *arguments)
        with suppress(NoScriptError):  # nothing was done
            return await conn.read_response()
        await conn.send_command("EVAL", script.source, 1, self._meta, *arguments)
        return await conn.read_response()

    async def command(self, *words: Argument) -> Any:
        """One plain command.

        Raises:
            StoreUnavailable: No reply came, or Redis refuses.
        """
        return await self.on_loop(self._command(words))

    async def _command(self, words: tuple[Argument, ...]) -> Any:
        try:
            async with self.connected() as conn:
                await conn.send_command(*words)
                return await conn.read_response()
        except (RedisError, OSError) as error:
            raise unavailable(str(words[0]), error) from error

    async def close(self) -> None:
        """Let calls end for a moment, then close every connection."""
        self._closed = True
        until = self.loop.time() + _CLOSE_S
        while self._out and self.loop.time() < until:  # noqa: ASYNC110 - a bounded end, not a wait for an event
            await asyncio.sleep(0.005)
        idle, self._idle = self._idle, []
        for conn in idle:
            await conn.disconnect(nowait=True)
