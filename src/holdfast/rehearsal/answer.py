"""Performs one segment of a script: steps in, timed pieces of an answer out; pure, no clock.

A piece is due at an offset in seconds from the start of the answer, computed from the script alone, so that pacing
does not drift: who plays it late catches up. Numbers of tokens run through the whole answer, faults included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from holdfast.rehearsal.steps import (
    BadJson,
    Comments,
    Cut,
    FirstToken,
    Say,
    SlowHeaders,
    Stall,
    Status,
    Step,
    StreamError,
    Think,
    Tokens,
    Tool,
    ToolPart,
    Usage,
)

__all__ = [
    "Answer",
    "CallArgs",
    "CallStart",
    "Comment",
    "Ending",
    "Finish",
    "Garbage",
    "Piece",
    "Text",
    "Thought",
]

CALL_RATE = 100.0
CALL_PIECES_MAX = 16
CALL_PIECE_CHARS = 4


@dataclass(frozen=True, slots=True)
class Text:
    """A token of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A token of reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins: the `index`-th of this response."""

    index: int
    call: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArgs:
    """A piece of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Comment:
    """Bytes that say nothing."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """A chunk that is not JSON."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The normal end."""

    reason: Literal["stop", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Ending:
    """An end that is not the normal one; nothing follows."""

    kind: Literal["close", "truncate", "error"]
    error: str = ""


Piece: TypeAlias = Text | Thought | CallStart | CallArgs | Comment | Garbage | Finish | Ending
Timed: TypeAlias = tuple[float, Piece]


class Answer:
    """One performance of the steps of a segment; counts what it emits."""

    def __init__(self, steps: Sequence[Step], prompt_tokens: int, call_prefix: str) -> None:
        """Prepare to perform `steps`; calls are named `call_prefix` and their number."""
        self._steps = steps
        self._call_prefix = call_prefix
        self._prompt_tokens = prompt_tokens
        self._reported: Usage | None = None
        self._numbered = 0
        self._words = 0
        self._thoughts = 0
        self._args = 0
        self._calls = 0
        self._now = 0.0  # when the last piece was due
        self._next = 0.0  # when the next token may come

    @property
    def usage(self) -> tuple[int, int, int]:
        """Prompt, completion and reasoning tokens: what the script reports, else what was emitted so far."""
        emitted = self._numbered + self._words + self._thoughts + self._args
        if self._reported is not None:
            completion = self._reported.completion
            return self._reported.prompt, completion, min(self._thoughts, completion)
        return self._prompt_tokens, emitted, self._thoughts

    def pieces(self) -> Iterator[Timed]:
        """The pieces in order, each with the offset at which it is due, the end last; to be iterated once."""
        for step in self._steps:
            ending: Ending | None = None
            for timed in self._perform(step):
                yield timed
                if isinstance(timed[1], Ending):
                    ending = timed[1]
            if ending is not None:
                return
        yield self._now, Finish("tool_calls" if self._calls else "stop")

    def _perform(self, step: Step) -> Iterator[Timed]:
        match step:
            case Say(text=text, rate=rate):
                yield from self._say(text, rate)
            case Tokens(n=n, rate=rate):
                yield from self._tokens(n, rate)
            case Think(n=n, rate=rate):
                yield from self._think(n, rate)
            case Tool() | ToolPart():
                yield from self._call(step)
            case FirstToken(seconds=seconds) | SlowHeaders(seconds=seconds):
                self._pause(seconds)
            case Stall(after=n, seconds=seconds, rate=rate):
                yield from self._tokens(n, rate)
                self._pause(seconds)
            case Comments():
                yield from self._comments(step)
            case Cut(after=n, kind=kind, rate=rate):
                yield from self._tokens(n, rate)
                yield self._now, Ending(kind)
            case BadJson(after=n, rate=rate):
                yield from self._tokens(n, rate)
                yield self._now, Garbage()
            case StreamError(after=n, rate=rate, error=error):
                yield from self._tokens(n, rate)
                yield self._now, Ending("error", error)
            case Usage():
                self._reported = step
            case Status():
                pass  # settled before the headers
            case _:
                assert_never(step)

    def _pace(self, rate: float) -> float:
        """The moment of the next token; the one after it may come 1/rate later."""
        self._now = max(self._now, self._next)
        self._next = self._now + 1 / rate
        return self._now

    def _pause(self, seconds: float) -> None:
        self._now += seconds
        self._next = self._now

    def _tokens(self, n: int, rate: float) -> Iterator[Timed]:
        for _ in range(n):
            self._numbered += 1
            yield self._pace(rate), Text(f"t{self._numbered} ")

    def _think(self, n: int, rate: float) -> Iterator[Timed]:
        for _ in range(n):
            self._thoughts += 1
            yield self._pace(rate), Thought(f"r{self._thoughts} ")

    def _say(self, text: str, rate: float) -> Iterator[Timed]:
        for word in re.findall(r"\s*\S+(?:\s+$)?", text):
            self._words += 1
            yield self._pace(rate), Text(word)

    def _comments(self, step: Comments) -> Iterator[Timed]:
        yield from self._tokens(step.after, step.rate)
        start = self._now
        for k in range(int(step.seconds / step.every) + 1):
            yield start + k * step.every, Comment()
        self._now = start
        self._pause(step.seconds)

    def _call(self, step: Tool | ToolPart) -> Iterator[Timed]:
        index = self._calls
        self._calls += 1
        yield self._pace(CALL_RATE), CallStart(index, f"{self._call_prefix}_{index + 1}", step.name)
        length = len(step.args)
        size = max(1, min(-(-length // 2), max(CALL_PIECE_CHARS, -(-length // CALL_PIECES_MAX))))
        end = length if isinstance(step, Tool) else max(1, length // 2)
        for at in range(0, end, size):
            self._args += 1
            yield self._pace(CALL_RATE), CallArgs(index, step.args[at : min(at + size, end)])
