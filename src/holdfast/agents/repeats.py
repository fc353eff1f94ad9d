"""Sees a model that asks for the same thing again and again: same tool, same arguments, one step after the other.

Only steps in a row count, so a tool that is asked again after something else happened is no loop. Arguments are
compared as JSON with sorted keys. Nothing is stored: a resumed attempt counts again through its checkpoint's responses.

A tool that is honestly asked the same thing many times says so, and is never counted:

    Tool(job_state, metadata={"polling": True})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart

from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason

POLLING: Final = "polling"


class Repeated(NamedTuple):
    """A call that is at least the `warn`-th of its kind in a row."""

    call: str
    name: str
    times: int


def _said(found: Repeated) -> str:
    """For the reader."""
    return f"the model has called {found.name} {found.times} times in a row with the same arguments"


def _note(found: Repeated) -> str:
    """For the model, behind the result."""
    return (
        f"\n\n[This was call {found.times} in a row of {found.name} with the same arguments. Unless you wait for a "
        "change, use what you have or do something else.]"
    )


def _ended(found: Repeated) -> RunEnded:
    """The end of the run."""
    return RunEnded(
        Reason.BUDGET,
        "tool_loop",
        f"{_said(found)}: tool_repeats allows no more",
        remedy='let the tool wait for what it polls, give it metadata={"polling": True}, or raise tool_repeats',
    )


class Repeats:
    """The count of one run."""

    def __init__(self, warn: int, limit: int, polls: Callable[[str], bool]) -> None:
        """Begin at none.

        Args:
            warn: From how many identical calls in a row on the model is told; 0 never.
            limit: How many end the run; 0 never.
            polls: Whether a tool, by name, may be asked the same thing for ever.
        """
        self.warn = warn
        self.limit = limit
        self._polls = polls
        self._last: dict[bytes, int] = {}

    def recall(self, messages: Iterable[ModelMessage]) -> None:
        """Count through what an earlier attempt has."""
        for message in messages:
            if isinstance(message, ModelResponse):
                self._count([part for part in message.parts if isinstance(part, ToolCallPart)])

    def look(self, calls: list[ToolCallPart], notes: dict[str, str]) -> list[str]:
        """Count one response's calls; what the reader is told. `notes` gets, by call, what the model is told.

        Raises:
            RunEnded: One call too many.
        """
        news = []
        for found in self.step(calls):
            if self.limit and found.times >= self.limit:
                raise _ended(found)
            notes[found.call] = _note(found)
            if found.times == self.warn:
                news.append(_said(found))
        return news

    def step(self, calls: list[ToolCallPart]) -> list[Repeated]:
        """Count one response's calls; those that a word is due about."""
        self._count(calls)
        floor = min(limit for limit in (self.warn, self.limit) if limit) if self.warn or self.limit else 0
        if not floor:
            return []
        found = []
        for part in calls:
            times = self._last[_same(part)]
            if times >= floor and not self._polls(part.tool_name):
                found.append(Repeated(part.tool_call_id, part.tool_name, times))
        return found

    def _count(self, calls: list[ToolCallPart]) -> None:
        kinds = {_same(part) for part in calls}
        self._last = {kind: self._last.get(kind, 0) + 1 for kind in kinds}


def _same(part: ToolCallPart) -> bytes:
    """Equal for calls that ask for the same thing."""
    args: Any = part.args
    if isinstance(args, str):
        with suppress(ValueError):  # no JSON: compared as it is
            args = json.loads(args or "{}")
    text = json.dumps([part.tool_name, args if args is not None else {}], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
