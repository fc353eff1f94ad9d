"""Hands events from the task that drives an agent library to the generator that the executor iterates.

Two tasks, because an agent library blocks inside its own stream (a model retry sleeps there for seconds) while the
reader must already see why. Bounded, so that a slow store slows the model's stream instead of filling the memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SIZE: Final = 32


class Channel(Generic[T]):
    """A bounded queue with an end, one sender and one reader."""

    def __init__(self, size: int = SIZE) -> None:
        """Start open and empty."""
        self._size = size
        self._items: deque[T] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._taken = asyncio.Event()
        self._closed = False
        self._deaf = False

    async def send(self, item: T) -> None:
        """Add `item`; waits while the channel is full.

        Raises:
            asyncio.CancelledError: The reader has gone: whoever swallowed his cancellation ends here.
        """
        while len(self._items) >= self._size and not self._deaf:
            self._room.clear()
            await self._room.wait()  # bounded: the reader's end sets it
        self._hear()
        self._items.append(item)
        self._taken.clear()
        self._ready.set()

    def offer(self, item: T) -> bool:
        """Add `item` if there is room, without waiting; also when nobody reads: it is among what is left then."""
        if self._closed or len(self._items) >= self._size:
            return False
        self._items.append(item)
        self._taken.clear()
        self._ready.set()
        return True

    async def settle(self) -> None:
        """Wait until the reader has dealt with everything sent, that is, has asked for more."""
        if self._items or not self._taken.is_set():
            await self._taken.wait()  # bounded: the reader's end sets it
        self._hear()

    def hang_up(self) -> None:
        """Nobody reads any more."""
        self._deaf = True
        self._room.set()
        self._taken.set()

    def leave(self) -> list[T]:
        """What was sent and not read."""
        left = list(self._items)
        self._items.clear()
        return left

    def _hear(self) -> None:
        if self._deaf:
            raise asyncio.CancelledError("nobody reads this run any more")

    def close(self) -> None:
        """Nothing more comes; the reader ends after what is there."""
        self._closed = True
        self._ready.set()

    async def read(self) -> AsyncIterator[T]:
        """What was sent, in order; asking for the next item says that the last one was dealt with."""
        while True:
            while self._items:
                item = self._items.popleft()
                self._room.set()
                yield item
            self._taken.set()
            if self._closed:
                return
            self._ready.clear()
            await self._ready.wait()  # bounded: the sender's end closes the channel
