"""Questions to the process that has a worker, and its answers: for what only a worker knows, such as where a run waits.

They are hints and not records: a question that nobody takes, and an answer that nobody waits for, go by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from holdfast.domain.ids import new_claim_token
from holdfast.ports.store import Wake
from holdfast.stores.redis.link import Link

ASK_TOPIC: Final = "ask"
_LIFE_MS: Final = 5000
_POLL_S: Final = 0.25  # a wake may be lost


class Question(NamedTuple):
    """What was asked of a worker."""

    worker: str
    id: str
    text: bytes


class Questions:
    """Both ends: who asks, and who answers."""

    def __init__(self, link: Link, subscribe: Callable[[str], AbstractContextManager[Wake]]) -> None:
        """Use the connections of the store."""
        self._link = link
        self._subscribe = subscribe

    async def ask(self, worker: str, text: bytes, limit_s: float) -> bytes | None:
        """The answer of whoever has `worker`; None if none came in `limit_s` seconds.

        Raises:
            StoreUnavailable: The question could not be asked.
        """
        id_, loop = new_claim_token(), asyncio.get_running_loop()
        until = loop.time() + limit_s
        with self._subscribe(f"answer:{id_}") as wake:
            _ = await self._link.call("ask", worker, id_, text, _LIFE_MS)
            while (left_s := until - loop.time()) > 0:
                await wake.wait(min(_POLL_S, left_s))
                found: bytes | None = await self._link.command("GETDEL", f"{self._link.address.prefix}answer:{id_}")
                if found is not None:
                    return found
        return None

    def subscribe(self) -> AbstractContextManager[Wake]:
        """Wakes when somebody asks something of some worker."""
        return self._subscribe(ASK_TOPIC)

    async def take(self, workers: Sequence[str]) -> list[Question]:
        """What was asked of these workers since the last call."""
        found = []
        for worker, one in await self._link.call("asked", *workers):
            id_, _, text = one.partition(b"\n")
            found.append(Question(worker.decode(), id_.decode(), text))
        return found

    async def answer(self, question: Question, text: bytes) -> None:
        """Give the answer to whoever asked."""
        await self._link.call("answer", question.id, text, _LIFE_MS)


__all__ = ["Question", "Questions"]
