"""The tail hub of a process: one pub/sub connection, from which wakes go to the waiters of this process.

State changes of runs come by one pattern, which is subscribed to before the store is handed out: they are few. Logs
have a channel each, and so has what concerns one worker; they are subscribed to while somebody here waits for them, so
that a gateway hears only of logs that it reads, and a worker only of stops of its own runs.
Between the wait and the subscription a wake may be lost: when Redis confirms the subscription, its waiters are woken.

Messages carry the head of the log only. What is lost with a connection is found by the safety poll of a tail, after a
second at the latest; after a new connection all waiters are woken, those of STOP_TOPIC excepted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from holdfast.aio import Owner, wait_event
from holdfast.ports.store import STOP_TOPIC, Wake, whole_topic
from holdfast.stores.redis.address import Address
from holdfast.stores.redis.link import CALL_S, connection
from holdfast.stores.wakes import Hub

_PING_S: Final = 5.0
_SILENT_S: Final = 15.0
_PAUSE_S: Final = 0.05
_PAUSE_MAX_S: Final = 1.0
_CLOSE_S: Final = 2.0
_CHANNELS_AT_ONCE: Final = 200


class Subscriber:
    """Keeps a subscribed connection for as long as the store is open, whatever becomes of each one."""

    def __init__(self, address: Address, hub: Hub, say: Callable[..., None]) -> None:
        """`say(event, **facts)` takes what goes wrong."""
        self._address = address
        self._hub = hub
        self._say = say
        self._logs, self._workers, self._others = (f"{address.prefix}{kind}:" for kind in "rtw")
        self._lock = threading.Lock()
        self._wanted: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._owner = Owner(lambda name, error: say("task_failed", task=name, error=repr(error)))
        self._heard_at = 0.0
        self._conn: AbstractConnection | None = None
        self.connected = False

    async def start(self) -> None:
        """Subscribe; returns when wakes arrive.

        Raises:
            RedisError, OSError: There is no connection to be had.
        """
        async with asyncio.timeout(CALL_S):
            self._conn = await self._connect()
        _ = self._owner.spawn(self._forever(), "wakes")

    async def close(self) -> None:
        """End; bounded."""
        await self._owner.close(_CLOSE_S)
        await self._disconnect()  # a task that was cancelled before its first step has not

    @contextmanager
    def subscribe(self, topic: str) -> Iterator[Wake]:
        """Wait on `topic`, from any loop."""
        with self._hub.subscribe(topic) as wake:
            if whole_topic(topic) == topic and not topic.startswith("run:"):
                yield wake
                return
            self._want(topic, 1)
            try:
                yield wake
            finally:
                self._want(topic, -1)

    def _want(self, topic: str, more: int) -> None:
        with self._lock:
            count = self._wanted.get(topic, 0) + more
            if count:
                self._wanted[topic] = count
            else:
                del self._wanted[topic]
            told = count == max(0, more)  # the first came, or the last went
        if told and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _connect(self) -> AbstractConnection:
        conn = connection(self._address)
        try:
            await conn.connect()
            await conn.send_command("PSUBSCRIBE", f"{self._others}*")
            await conn.read_response()
        except BaseException:
            await conn.disconnect(nowait=True)
            raise
        self._heard_at = self._loop.time()
        return conn

    async def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.disconnect(nowait=True)

    async def _forever(self) -> None:
        """Serve one connection after the other; a failure is said, and it begins again."""
        pause = _PAUSE_S
        while True:
            try:
                if self._conn is None:
                    async with asyncio.timeout(CALL_S):
                        self._conn = await self._connect()
                    self._wake_all()
                    self._say("store_connected", part="wakes")
                    pause = _PAUSE_S
                self.connected = True
                await self._serve(self._conn)
            except (RedisError, OSError) as error:
                self._say("store_unavailable", part="wakes", error=f"{type(error).__name__}: {error}")
            except Exception as error:  # noqa: BLE001 - said, and begun again: wakes must not end in silence
                self._say("loop_failed", part="wakes", error=repr(error))
            finally:
                self.connected = False
                await self._disconnect()
            await asyncio.sleep(pause)
            pause = min(_PAUSE_MAX_S, pause * 2)

    async def _serve(self, conn: AbstractConnection) -> None:
        """Read until the connection fails; a second task keeps the subscriptions and the connection alive."""
        owner = Owner(lambda *_: None)  # its exception is raised here
        keeping = owner.spawn(self._keep(conn), "subscriptions")
        reading = owner.spawn(self._read(conn), "messages")
        try:
            # bounded: _keep ends when nothing was heard for _SILENT_S
            await asyncio.wait([keeping, reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await owner.close(_CLOSE_S)
        for task in (keeping, reading):
            if task.done() and not task.cancelled():
                task.result()

    async def _read(self, conn: AbstractConnection) -> None:
        while True:
            message = await conn.read_response()
            self._heard_at = self._loop.time()
            if isinstance(message, list):
                self._take(message)

    def _take(self, message: list[Any]) -> None:
        match message:
            case [b"pmessage", _, channel, _]:
                self._hub.publish([channel.decode().removeprefix(self._others)])
            case [b"message" | b"subscribe" as kind, channel, _]:
                topic = channel.decode()[len(self._logs) :]
                if kind == b"message" or whole_topic(topic) != STOP_TOPIC:
                    self._hub.publish([topic])
            case _:
                pass

    async def _keep(self, conn: AbstractConnection) -> None:
        """Subscribe to what is wanted, and see that the connection lives."""
        held: set[str] = set()
        ping_at = self._loop.time() + _PING_S
        self._changed.set()
        while True:
            if await wait_event(self._changed, max(0.01, ping_at - self._loop.time())):
                self._changed.clear()
                with self._lock:
                    wanted = set(self._wanted)
                await self._tell(conn, "SUBSCRIBE", wanted - held)
                await self._tell(conn, "UNSUBSCRIBE", held - wanted)
                held = wanted
            now = self._loop.time()
            if now - self._heard_at > _SILENT_S:
                raise TimeoutError(f"no word from Redis for {now - self._heard_at:.0f} s")
            if now >= ping_at:
                ping_at = now + _PING_S
                await conn.send_command("PING")

    async def _tell(self, conn: AbstractConnection, word: str, topics: set[str]) -> None:
        channels = [(self._logs if topic.startswith("run:") else self._workers) + topic for topic in topics]
        for first in range(0, len(channels), _CHANNELS_AT_ONCE):
            await conn.send_command(word, *channels[first : first + _CHANNELS_AT_ONCE])

    def _wake_all(self) -> None:
        self._hub.publish(topic for topic in self._hub.topics() if whole_topic(topic) != STOP_TOPIC)
