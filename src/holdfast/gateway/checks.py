"""Questions to parts that may hang, answered in bounded time.

A question is asked once at a time: until it ends, everybody who asks is told that it has not been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast.aio import Owner, settle

ANSWER_S = 0.8

Facts = dict[str, Any]
Answered = tuple[Facts | None, str]


class Check:
    """One question to the parts, asked at most once at a time, answered in bounded time."""

    def __init__(self, owner: Owner, name: str, ask: Callable[[], Awaitable[Facts]], limit_s: float = ANSWER_S) -> None:
        """Take the question; `ask` may hang, raise or take long. It is waited for at most `limit_s`."""
        self._limit_s = limit_s
        self._owner = owner
        self._name = name
        self._ask = ask
        self._asked: asyncio.Task[Facts] | None = None

    async def answer(self) -> Answered:
        """The answer and "", or None and why there is none."""
        if self._asked is None:
            self._asked = self._owner.spawn(self._quiet(), f"check {self._name}")
        asked = self._asked
        if await settle([asked], self._limit_s):
            return None, f"{self._name} did not answer within {self._limit_s:g} s"
        if self._asked is asked:
            self._asked = None
        found = asked.result()
        return (None, found["error"]) if set(found) == {"error"} else (found, "")

    async def _quiet(self) -> Facts:
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001 - a check that raises is an answer: not ready, and why
            return {"error": f"{self._name}: {type(error).__name__}: {error}"}


async def ask_all(owner: Owner, *checks: Check) -> list[Answered]:
    """Ask several at the same time."""
    asked = [owner.spawn(check.answer(), "health") for check in checks]
    await settle(asked, ANSWER_S + 0.1)
    return [task.result() if task.done() else (None, "no answer in time") for task in asked]
