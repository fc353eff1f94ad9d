"""Readers that are woken by one event share one answer of Redis, so that a run with 200 readers costs one read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from holdfast.aio import Owner
from holdfast.domain.ids import RunKey
from holdfast.ports.store import Page

_CLOSE_S = 1.0
_Place = tuple[RunKey, int, int]


class SharedReads:
    """Joins reads of one place that are asked for before the first of them was sent.

    Only until then: an answer that is on its way already may lack the event by which a later reader was woken.
    """

    def __init__(self, read: Callable[[RunKey, int, int], Awaitable[Page]]) -> None:
        """`read` takes run, after and limit."""
        self._read = read
        self._asked: dict[_Place, asyncio.Task[Page]] = {}
        self._owner = Owner(lambda *_: None)  # who waits for the page hears of it

    async def read(self, key: RunKey, after: int, limit: int) -> Page:
        """The page after `after`, read now."""
        place = (key, after, limit)
        task = self._asked.get(place)
        if task is None:
            task = self._asked[place] = self._owner.spawn(self._send(place), f"read {key.run}")
        return await asyncio.shield(task)  # a reader that leaves does not take the page from the others

    async def close(self) -> None:
        """End what nobody waits for any more; bounded."""
        await self._owner.close(_CLOSE_S)

    async def _send(self, place: _Place) -> Page:
        del self._asked[place]
        return await self._read(*place)
